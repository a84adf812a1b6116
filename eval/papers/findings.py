# SPDX-License-Identifier: Apache-2.0
"""Single numbers of the results that the documents' sentences are made of: `evaluations`, `claims`.

    lowering(results, "ssl-paper:500")      # percent of the loss
    zoo_bd_rate(results, "mbt2018-mean-small", "JPEG")

Each function reads eval/results, does no more arithmetic than a mean or a ratio, and gives numbers, so that
the sentence, its rounding and its verdict stand where they are read.

In:  the folder of results. Out: numbers, their units in the docstrings.
Fails with ``FileNotFoundError`` or ``KeyError`` where something was not measured.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from compressai_sga import metrics
from compressai_sga.comparison import published
from experiments.coding import universal
from experiments.diffc import images_report as diffc_images_report
from experiments.diffc import report as diffc_report
from experiments.hfd import report as hfd_report
from experiments.refinement import curve as refine_curve
from experiments.refinement import methods as refine_methods
from experiments.refinement import zoo_curve

__all__ = [
    "c3_crops",
    "c3_whole",
    "cells",
    "circle",
    "coder_sizes",
    "coder_speedups",
    "diffc_gains",
    "diffc_prefixes",
    "dirichlet",
    "exact",
    "gaussian_gains",
    "gaussian_off",
    "hfd_quality",
    "hybrid",
    "lowering",
    "methods",
    "normal",
    "published_bd_rate",
    "rda_gaps",
    "rda_pictures",
    "rdp",
    "refined_bd_rate",
    "step_ratio",
    "universal_gaps",
    "zoo_bd_rate",
]

Cells = dict[str, dict[str, Any]]
METHODS = "refine-methods-mbt2018-mean-small-3-crop128.json"


def cells(results: Path, name: str) -> Cells:
    """Cells of a results file of `records`."""
    return json.loads((results / f"{name}.json").read_text(encoding="utf-8"))["cells"]


# --- Refinement --------------------------------------------------------------------------------------


def methods(results: Path) -> refine_methods.Results:
    """What the table of methods is made of."""
    return refine_methods.by_entry(cells(results, METHODS.removesuffix(".json")))


def lowering(results: Path, entry: str) -> float:
    """Percent by which an entry, PRESET:STEPS, lowers the mean loss of real bitstreams."""
    done = methods(results)[entry]
    after, before = (refine_methods.mean(done, f"loss-{when}") for when in ("after", "before"))
    return 100 * (1 - after / before)


def refined_bd_rate(results: Path, entry: str) -> float:
    """Percent of rate against the unrefined curve."""
    curves = refine_curve.read_results(results)
    value = refine_curve.bd_rate(curves["unrefined"], curves[entry])
    if value is None:
        raise ValueError(f"the curve {entry} has too few points for a BD-rate; measure more qualities")
    return value


def published_bd_rate(results: Path, codec: str, anchor: str) -> float:
    """Percent of rate of one published curve against another, pchip over the common interval of PSNR."""
    points = published.points(results)
    return metrics.bd_rate(points[anchor]["results"], points[codec]["results"], method="pchip").value


def zoo_bd_rate(results: Path, model: str, anchor: str) -> float:
    """Percent of rate of a model of the zoo against a codec of the table."""
    curves, anchors = zoo_curve.read_results(results)
    return zoo_curve.bd_rate(anchors[anchor], curves[model])[0]


def step_ratio(results: Path) -> float:
    """Time of a step of the published loop over ours in the precision that it chooses, median of pairs."""
    (cell,) = cells(results, "step-time").values()
    (label,) = (name for name in cell["values"] if name.startswith("ours, auto"))
    return statistics.median(cell["values"][label]["theirs / this"])


# --- Coders and quantisation -------------------------------------------------------------------------


def coder_speedups(results: Path, step: str, coder: str = "constriction-ans") -> dict[str, float]:
    """Stock's time over ours, by model; step as "model decompress"."""
    found = cells(results, "coders")
    names = [name for name in found if name.startswith("time ") and name.endswith(f" {coder}")]
    return {name.split(" ", 1)[1].rsplit(" ", 1)[0]: _ratio(found[name], step) for name in names}


def _ratio(cell: dict[str, Any], step: str) -> float:
    return cell["values"][step]["stock / ours"]


def coder_sizes(results: Path, coder: str) -> dict[str, float]:
    """Percent of bytes against stock's coder, by model."""
    found = {name: c for name, c in cells(results, "coders").items() if name.startswith("size ")}
    return {name.removeprefix("size "): 100 * (c["values"][coder]["ratio"] - 1) for name, c in found.items()}


def universal_gaps(results: Path, model: str) -> list[float]:
    """Percent by which the loss of real files is above that of training, a quality each."""
    by_quality = universal.measured(cells(results, "universal"))[model]
    return [values["gap_percent"]["mean"] for values in by_quality.values()]


# --- Samples and realism -----------------------------------------------------------------------------


def normal(results: Path, kl_bits: int, method: str) -> dict[str, Any]:
    """N(m, 1) sent with candidates of N(0, 1)."""
    return cells(results, "samples")[f"normal shifted KL={kl_bits} {method}"]["values"]


def exact(results: Path, kl_bits: int) -> dict[str, Any]:
    """Exact samples of the narrower target by PFR."""
    return cells(results, "samples")[f"normal narrow KL={kl_bits} pfr exact"]["values"]


def hybrid(results: Path, method: str) -> dict[str, Any]:
    """The hybrid's example by "hybrid" or "pfr"."""
    return cells(results, "samples")[f"hybrid {method}"]["values"]


def dirichlet(results: Path, method: str, count: int) -> tuple[float, float]:
    """Total variation, and bits of entropy of the number, means over the targets."""
    found = [c["values"] for name, c in cells(results, "samples").items() if name.startswith("dirichlet ")]
    distance, entropy = np.mean([values[method][str(count)] for values in found], axis=0)
    return float(distance), float(entropy)


def rdp(results: Path) -> list[dict[str, Any]]:
    """Points of the Gaussian source: settings and values."""
    return [cell["of"] | cell["values"] for cell in cells(results, "rdp_gaussian").values()]


def circle(results: Path) -> dict[int, dict[str, float]]:
    """Mean squared errors by number of codes and scheme."""
    found: dict[int, dict[str, float]] = {}
    for name, cell in cells(results, "stochastic_encoders").items():
        scheme, codes = name.split(" M=")
        found.setdefault(int(codes), {})[scheme] = cell["values"]["distortion"]["mean"]
    return dict(sorted(found.items()))


# --- Models ------------------------------------------------------------------------------------------


def c3_crops(results: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """(ours, reference) by crop."""
    found = cells(results, "c3")
    ours = {
        name.removeprefix("crops "): c["values"] for name, c in found.items() if name.startswith("crops ")
    }
    return {name: (values, found[f"reference {name}"]["values"]) for name, values in sorted(ours.items())}


def c3_whole(results: Path) -> list[dict[str, Any]]:
    """Whole images."""
    return [c["values"] for name, c in cells(results, "c3").items() if name.startswith("whole ")]


def rda_gaps(results: Path, what: str) -> dict[str, dict[int, float]]:
    """Percent by which noise is above rounding, "bpp" or "distortion": {model: {quality: mean of images}}."""
    gaps: dict[tuple[str, int], list[float]] = {}
    for name, cell in cells(results, "rda").items():
        if f"{what}_noise" in cell["values"]:
            model, quality = name.split(" ")[0].rsplit("-", 1)
            values = cell["values"]
            gap = 100 * (values[f"{what}_noise"] / values[f"{what}_rounding"] - 1)
            gaps.setdefault((model, int(quality)), []).append(gap)
    found: dict[str, dict[int, float]] = {}
    for (model, quality), of_images in sorted(gaps.items()):
        found.setdefault(model, {})[quality] = float(np.mean(of_images))
    return found


def rda_pictures(results: Path) -> dict[str, dict[str, float]]:
    """Bytes and qualities by codec of one image, the last where there are several."""
    *_, found = (c for name, c in cells(results, "rda").items() if name.startswith("pictures "))
    return found["values"]


def hfd_quality(results: Path, quality: int, label: str) -> dict[str, Any]:
    """Means of one kind of reconstruction: "first", "0.5", "0.8", "1.0"."""
    return hfd_report.point(cells(results, "hfd"), quality, label)


def gaussian_gains(results: Path, source: str) -> list[dict[str, float]]:
    """Levels of a Gaussian source: noise variance s2, gain of F over A in dB as measured and exact."""
    levels = diffc_report.part(cells(results, "diffc"), "gaussian")[source]["levels"]
    return [{"s2": v["s2"], "gain_db": v["gain_db"], "exact_db": v["formula"]["gain_db"]} for v in levels]


def gaussian_off(results: Path) -> float:
    """Largest difference from a closed form, of bits and errors, in percent."""
    values = diffc_report.part(cells(results, "diffc"), "gaussian")
    return max(
        abs(100 * (level[name]["mean"] / level["formula"][name] - 1))
        for source in diffc_report.SOURCES
        for level in values[source]["levels"]
        for name in ("bits", "ancestral", "flow")
    )


def diffc_gains(results: Path) -> dict[str, float]:
    """PSNR of DiffC-F above DiffC-A in dB, by rate aimed at."""
    points = diffc_images_report.curves(cells(results, "diffc"))
    pairs = zip(points["F"], points["A"], strict=True)
    return {f["setting"]: f["psnr_db"] - a["psnr_db"] for f, a in pairs}


def diffc_prefixes(results: Path) -> list[tuple[float, float]]:
    """(bits a pixel, PSNR) of the beginnings of a stream."""
    return diffc_images_report.prefix_curve(cells(results, "diffc"))
