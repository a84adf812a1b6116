# SPDX-License-Identifier: Apache-2.0
"""Every evaluation of the documents: its command, its results files, its tables, figures and headline.

A new evaluation needs one row in `EVALUATIONS`. In eval/RESULTS.md it needs a heading equal to the row's
title, its command, its figures, and the two marker lines of each block; `documents` writes the lines between
them:

    <!-- results:NAME -->
    <!-- /results -->

Tables and figures of a row are made from eval/results alone. Pictures are figures that also need models or
images. Only the experiment's script draws them, and the results cannot tell whether they are up to date.

In:  the folder of results. Out: Markdown; figures of matplotlib.
Fails with ``FileNotFoundError`` or ``KeyError`` if something was not measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressai_sga.comparison import published
from compressai_sga.comparison import report as compare_report
from experiments.c3 import report as c3
from experiments.coding import coders, universal
from experiments.diffc import images_report as diffc_images
from experiments.diffc import report as diffc
from experiments.hfd import report as hfd
from experiments.realism import critic_report, rda, rdp_gaussian, stochastic_encoders
from experiments.refinement import curve, methods, step_time, zoo_curve
from experiments.reverse_coding import report as reverse_coding
from experiments.sga_plus import figures as sga_plus_figures
from experiments.sga_plus import objective as sga_objective
from experiments.sga_plus import plan as sga_plus_plan
from experiments.sga_plus import report as sga_plus
from experiments.sga_plus.runs import REDUCED
from reporting import Figure, markdown, read_cells

__all__ = ["EVALUATIONS", "Evaluation", "readme_summary", "slug", "summary"]


@dataclass(frozen=True)
class Evaluation:
    """One section of eval/RESULTS.md.

    Args:
        title: its heading, and its row in the summaries of eval/RESULTS.md and README.md.
        command: for the measurement.
        results: names of its files in eval/results, or patterns.
        blocks: by name, the function that makes a block from the folder of results.
        headline: its result in the summaries; None leaves the row out.
        figures: by name of the file in eval/figures without ".png"; drawn from `results`.
        pictures: names of figures that only the command can draw.
        in_readme: False leaves it out of README.md's summary, which has about ten rows.
    """

    title: str
    command: str
    results: tuple[str, ...]
    blocks: Mapping[str, Callable[[Path], str]]
    headline: Callable[[Path], str] | None = None
    figures: Mapping[str, Callable[[Path], Figure]] = field(default_factory=dict)
    pictures: tuple[str, ...] = ()
    in_readme: bool = True

    def sources(self, results: Path) -> list[Path]:
        """The results files of this evaluation."""
        found = [path for name in self.results for path in sorted(results.glob(name))]
        missing = [name for name in self.results if not list(results.glob(name))]
        if missing:
            raise FileNotFoundError(f"no file {', '.join(missing)} in {results}; run `{self.command}`")
        return found


def of_cells(name: str, make: Callable[..., Any], *arguments: Any) -> Callable[[Path], Any]:
    """Turn a function of a file's cells into a function of the folder of results."""
    return lambda results: make(read_cells(results, name), *arguments)


def of_curves(make: Callable[..., Any], read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Turn a function of the curves of several files into a function of the folder of results."""
    return lambda results: make(read(results))


# --- What is not a function of cells alone -----------------------------------------------------------


def _step_time(results: Path) -> str:
    content = json.loads((results / "step-time.json").read_text(encoding="utf-8"))
    return step_time.tables(content["cells"], content["machine"])


def _c3_figure(results: Path) -> Figure:
    return c3.figure(read_cells(results, "c3"), published.points(results))


COMPARED = "compare-kodak/results.json"
COMPARED_ANCHOR = "jpeg2000"
COMPARED_BESIDE = ("compressai:compressai-mbt2018-mean_mse_cpu", "compressai:vtm", "C3 (Adaptive)")


def _compared(results: Path) -> str:
    content = json.loads((results / COMPARED).read_text(encoding="utf-8"))
    return compare_report.tables(content, COMPARED_ANCHOR, _beside(results))


def _beside(results: Path) -> published.Published:
    points = published.points(results)
    return {name: points[name] for name in COMPARED_BESIDE}


def _compared_means(results: Path) -> compare_report.Means:
    content = json.loads((results / COMPARED).read_text(encoding="utf-8"))
    return compare_report.means(content["cells"], _beside(results))


def _compare(results: Path) -> str:
    head, rows, _ = compare_report.bd_table(_compared_means(results), COMPARED_ANCHOR)
    rates = {row[0]: row[1].split(" (")[0] for row in rows}
    names = ("avif", "mbt2018-mean-small", "mbt2018-mean-small:refine=fast")
    return f"BD-rate {head[0]}: {', '.join(f'`{name}` {rates[name]}' for name in names)}"


def _diffc(results: Path) -> str:
    cells = read_cells(results, "diffc")
    gains = diffc_images.gains(diffc_images.curves(cells)).values()
    return (
        f"Gaussian sources within {diffc.largest_error(cells):.1f} % of theory; on crops DiffC-F "
        f"{min(gains):+.2f} to {max(gains):+.2f} dB above DiffC-A"
    )


# --- The rows, in the order of the documents ---------------------------------------------------------

EVALUATIONS: tuple[Evaluation, ...] = (
    Evaluation(
        "The zoo without refinement, on Kodak",
        "python eval/run.py zoo-curve --kodak KODAK --anchors ANCHORS",
        (published.FILE, *(f"zoo-kodak-{name}.json" for name in zoo_curve.NAMES)),
        {"zoo-kodak": lambda results: zoo_curve.tables(*zoo_curve.read_results(results))},
        lambda results: zoo_curve.headline(*zoo_curve.read_results(results)),
        {"zoo-kodak": lambda results: zoo_curve.figure(*zoo_curve.read_results(results))},
        in_readme=False,
    ),
    Evaluation(
        "Codecs compared, on Kodak",
        "python eval/compare.py --images KODAK --out eval/results/compare-kodak --metrics swd "
        "--anchor jpeg2000 --entries jpeg jpeg2000 webp avif jxl bmshj2018-factorized-small "
        "mbt2018-mean-small hfd-small@1-4 mbt2018-mean-small@1,3,5:refine=fast",
        (COMPARED, published.FILE),
        {"compare": _compared},
        _compare,
        {
            f"compare-{name}": lambda results, metric=metric: compare_report.figure(
                _compared_means(results), metric
            )
            for name, metric in (("psnr", "psnr-rgb"), ("ms-ssim", "ms-ssim-rgb"), ("swd", "swd"))
        },
        pictures=("compare-viewer",),
    ),
    Evaluation(
        "Methods and presets at the same model",
        "python eval/run.py refine-methods --images KODAK",
        (f"{methods.SHOWN}.json",),
        {"methods": of_curves(methods.table, methods.read_results)},
        of_curves(methods.headline, methods.read_results),
        {"refine-methods": of_curves(methods.figure, methods.read_results)},
    ),
    Evaluation(
        "Rate-distortion curves, unrefined and refined",
        "python eval/run.py refine-curve --images KODAK",
        ("refine-curve-mbt2018-mean-small-crop128-*.json",),
        {"curve": of_curves(curve.table, curve.read_results)},
        of_curves(curve.headline, curve.read_results),
        {"refine-curve": of_curves(curve.figure, curve.read_results)},
    ),
    Evaluation(
        "The claims of SGA+",
        "python eval/run.py sga-plus --reduced --images KODAK",
        (f"{REDUCED}.json",),
        {
            f"sga-plus-{part}": of_cells(REDUCED, sga_plus.tables, [part])
            for part in ("what", *sga_plus_plan.PARTS)
        },
        of_cells(REDUCED, sga_plus.headline),
        {
            f"{REDUCED}-{part}": of_cells(REDUCED, sga_plus_figures.figure, part)
            for part in sga_plus_plan.PARTS
        },
    ),
    Evaluation(
        "The objective of the papers beside ours",
        "python eval/run.py sga-objective --images KODAK",
        (f"{sga_objective.NAME}.json",),
        {"sga-objective": of_cells(sga_objective.NAME, sga_objective.tables)},
        of_cells(sga_objective.NAME, sga_objective.headline),
        in_readme=False,
    ),
    Evaluation(
        "Time of one step",
        "python eval/run.py step-time",
        ("step-time.json",),
        {"step-time": _step_time},
        of_cells("step-time", step_time.headline),
        in_readme=False,
    ),
    Evaluation(
        "Entropy coders against stock's `ans`",
        "python eval/run.py coders",
        ("coders.json",),
        {"coders": of_cells("coders", coders.tables)},
        of_cells("coders", coders.headline),
    ),
    Evaluation(
        "Training loss and test loss of universally quantised models",
        "python eval/run.py universal --data KODAK",
        ("universal.json",),
        {"universal": of_cells("universal", universal.tables)},
        of_cells("universal", universal.headline),
        {"universal": of_cells("universal", universal.figure)},
    ),
    Evaluation(
        "Sent samples: cost and law",
        "python eval/run.py reverse-coding",
        ("samples.json",),
        {
            "samples": of_cells("samples", reverse_coding.short_tables),
            "samples-full": of_cells("samples", reverse_coding.tables),
        },
        of_cells("samples", reverse_coding.headline),
        {"samples": of_cells("samples", reverse_coding.figure)},
    ),
    Evaluation(
        "A Gaussian source with perfect realism",
        "python eval/run.py rdp-gaussian",
        ("rdp_gaussian.json",),
        {"rdp": of_cells("rdp_gaussian", rdp_gaussian.tables)},
        of_cells("rdp_gaussian", rdp_gaussian.headline),
        {"rdp_gaussian": of_cells("rdp_gaussian", rdp_gaussian.figure)},
        in_readme=False,
    ),
    Evaluation(
        "Stochastic encoders on the circle",
        "python eval/run.py stochastic-encoders",
        ("stochastic_encoders.json",),
        {"circle": of_cells("stochastic_encoders", stochastic_encoders.tables)},
        of_cells("stochastic_encoders", stochastic_encoders.headline),
        {"stochastic_encoders": of_cells("stochastic_encoders", stochastic_encoders.figure)},
        in_readme=False,
    ),
    Evaluation(
        "C3 against Cool-Chic, and what its budget buys",
        "python eval/run.py c3",
        ("c3.json", published.FILE),
        {
            f"c3-{part}": of_cells("c3", c3.tables, [part])
            for part in ("crops", "budget", "warm", "whole", "step")
        },
        of_cells("c3", c3.headline),
        {"c3": _c3_figure},
        pictures=("c3-crops",),
    ),
    Evaluation(
        "Rate-distortion autoencoders",
        "python eval/run.py rda --data KODAK",
        ("rda.json",),
        {"rda": of_cells("rda", rda.tables)},
        of_cells("rda", rda.headline),
        {
            name: of_cells("rda", lambda cells, name=name: rda.figures(cells)[name])
            for name in ("rda-entropies", "rda-distortions")
        },
        pictures=("rda-pictures",),
        in_readme=False,
    ),
    Evaluation(
        "HFD behind `mbt2018-mean-small`, on Kodak",
        "python eval/run.py hfd",
        ("hfd.json",),
        {"hfd": of_cells("hfd", hfd.tables)},
        of_cells("hfd", hfd.headline),
        {"hfd": of_cells("hfd", hfd.figure)},
        pictures=("hfd-crops",),
    ),
    Evaluation(
        "DiffC: against its theory, its channels, and other codecs",
        "python eval/run.py diffc",
        ("diffc.json",),
        {
            "diffc-gaussian": of_cells("diffc", diffc.gaussian_tables),
            "diffc-channels": of_cells("diffc", diffc_images.channel_tables),
            "diffc-curves": of_cells("diffc", diffc_images.curve_tables),
        },
        _diffc,
        {
            "diffc-gaussian": of_cells("diffc", diffc.gaussian_figure),
            "diffc-overhead": of_cells("diffc", diffc_images.overhead_figure),
            "diffc-curves": of_cells("diffc", diffc_images.curves_figure),
        },
        pictures=("diffc-crops",),
    ),
    Evaluation(
        "The universal critic on real images",
        "python eval/run.py critic --data KODAK",
        ("critic.json",),
        {"critic": of_cells("critic", critic_report.tables)},
        of_cells("critic", critic_report.headline),
        {"critic": of_cells("critic", critic_report.figure)},
        in_readme=False,
    ),
)


def summary(results: Path) -> str:
    """The table at the head of eval/RESULTS.md: one row for each evaluation."""
    return _rows(results, EVALUATIONS, "")


def readme_summary(results: Path) -> str:
    """The table of README.md."""
    return _rows(results, [row for row in EVALUATIONS if row.in_readme], "eval/RESULTS.md")


def _rows(results: Path, evaluations: Iterable[Evaluation], document: str) -> str:
    rows = [
        (f"[{row.title}]({document}#{slug(row.title)})", row.headline(results), f"`{row.command}`")
        for row in evaluations
        if row.headline is not None
    ]
    return markdown(("what", "result", "command"), rows)


def slug(heading: str) -> str:
    """The anchor of a heading in a Markdown page."""
    kept = "".join(c for c in heading.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")
