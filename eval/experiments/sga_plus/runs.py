# SPDX-License-Identifier: Apache-2.0
"""The refinements of a results file of SGA+, compared image by image.

Methods differ by a few thousandths of the loss, while the losses of images differ by factors. So two runs are
first compared on each image, by the difference of their losses in percent of the image's unrefined loss. The
mean of these differences has a standard error, and `Estimate.sign` says whether Student's 95 % interval
excludes zero.

In:  cells. Out: `Results`, by `Setting`. Incomplete runs, which lack images of other runs, are left out and
named.
Fails with ``ValueError`` if cells belong to different weights, models or crops.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from scipy import stats

from compressai_sga.errors import SgaError
from compressai_sga.metrics import Delta, bd_psnr, bd_rate
from compressai_sga.tasks.records import mean_error
from experiments.sga_plus.plan import METHODS, OURS, Setting, paper

__all__ = ["REDUCED", "Bd", "Estimate", "Results", "Run", "bd", "difference", "estimate", "points", "spread"]

REDUCED = "sga-plus-reduced"  # the results that the documents show
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over images.

    Args:
        mean: of them.
        error: its standard error; NaN for one image.
        count: images.
        least: the smallest standard error that `sign` believes in.
    """

    mean: float
    error: float
    count: int
    least: float = 0.0

    @property
    def sign(self) -> int:
        """-1 or 1 where the interval is below or above zero, 0 where it holds zero."""
        if self.count < 2:
            return 0
        reach = stats.t.ppf(0.5 + CONFIDENCE / 2, self.count - 1) * max(self.error, self.least)
        return 0 if abs(self.mean) <= reach else (1 if self.mean > 0 else -1)

    def text(self, digits: int = 2, unit: str = " %") -> str:
        """Mean and standard error."""
        return f"{self.mean:+.{digits}f} ± {self.error:.{digits}f}{unit}"


def estimate(values: Iterable[float], least: float = 0.0) -> Estimate:
    """Mean and standard error of one value an image."""
    values = np.array(list(values), dtype=np.float64)
    found = mean_error(values) if len(values) > 1 else {"mean": float(values.mean()), "error": float("nan")}
    return Estimate(found["mean"], found["error"], len(values), least)


@dataclass
class Run:
    """One setting, refined.

    Args:
        setting: which.
        lmbda: trade-off.
        images: by name, values before and after.
        looks: by number of steps done and image, the method's loss and the true one.
        cpu_seconds: of all images.
    """

    setting: Setting
    lmbda: float
    images: dict[str, dict[str, float]] = field(default_factory=dict)
    looks: dict[int, dict[str, tuple[float, float]]] = field(default_factory=dict)
    cpu_seconds: float = 0.0

    def values(self, key: str) -> np.ndarray:
        """One a image, in the order of their names."""
        return np.array([self.images[name][key] for name in sorted(self.images)])

    def mean(self, key: str) -> float:
        return float(self.values(key).mean())

    def change(self) -> np.ndarray:
        """Of the loss by refinement, in percent, by image."""
        return 100 * (self.values("loss_after") / self.values("loss_before") - 1)

    def on_the_way(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Steps (K,), the method's loss and the true loss (K, images)."""
        steps = sorted(step for step, seen in self.looks.items() if len(seen) == len(self.images))
        pairs = np.array([[self.looks[step][name] for name in sorted(self.images)] for step in steps])
        return np.array(steps), pairs[..., 0], pairs[..., 1]


def difference(ours: Run, theirs: Run) -> np.ndarray:
    """Loss of `ours` minus that of `theirs`, in percent of the unrefined one, by image."""
    gap = ours.values("loss_after") - theirs.values("loss_after")
    return 100 * gap / theirs.values("loss_before")


def spread(runs: Iterable[Run]) -> np.ndarray:
    """How much the choice between settings matters: worst minus best, by mean; in percent, by image."""
    ordered = sorted(runs, key=lambda run: run.change().mean())
    return difference(ordered[-1], ordered[0])


class Results:
    """Everything that a results file holds."""

    def __init__(self, cells: Mapping[str, Any]):
        _require_one_origin(cells)
        found: dict[Setting, Run] = {}
        for cell in cells.values():
            setting, values = Setting(**cell["of"]["setting"]), cell["values"]
            run = found.setdefault(setting, Run(setting, values["lmbda"]))
            run.images |= values["images"]
            run.cpu_seconds += values["cpu_seconds"]
            names = cell["of"]["images"]
            for look in values["looks"]:
                pairs = zip(names, zip(look["method"], look["true"]))
                run.looks.setdefault(look["step"], {}).update(pairs)
        most = max((len(run.images) for run in found.values()), default=0)
        self.images = most
        self.runs = {s: run for s, run in found.items() if len(run.images) == most}
        self.left_out = [s.name for s in found if s not in self.runs]
        origin = next(iter(cells.values()))["of"] if cells else {"crop": 0, "model": ""}
        self.crop, self.model = origin["crop"], origin["model"]

    @cached_property
    def middle(self) -> int:
        """Quality of the parts other than the curves: the one with most settings."""
        qualities = [setting.quality for setting in self.runs]
        return max(sorted(set(qualities)), key=qualities.count)

    @cached_property
    def steps(self) -> list[int]:
        """Budgets of the papers' methods."""
        return sorted({s.steps for s in self.runs if s.method in METHODS})

    def paper(self, method: str, steps: int, quality: int | None = None, **changes: Any) -> Run | None:
        """The run of a method with the paper's numbers, or with some of them changed."""
        own = paper(method, self.middle if quality is None else quality, steps)
        return self.runs.get(dataclasses.replace(own, **changes))

    def sweep(self, method: str, steps: int, name: str, quality: int | None = None) -> dict[float, Run]:
        """Runs at a quality (None: the middle one) that differ from the paper in one number, by its value."""
        own = paper(method, self.middle if quality is None else quality, steps)
        found = {
            getattr(s, name): run
            for s, run in self.runs.items()
            if getattr(s, name) is not None and dataclasses.replace(s, **{name: getattr(own, name)}) == own
        }
        return dict(sorted(found.items()))

    def curve(self, method: str, steps: int) -> dict[int, Run]:
        """Runs with the paper's numbers, by quality; "none" for the unrefined images."""
        if method == "none":
            methods = (*METHODS, *OURS)
            chosen = [s for s in self.runs if s.method in methods and s.lmbda is None]
            return {s.quality: self.runs[s] for s in sorted(chosen, key=lambda s: s.quality)}
        qualities = sorted({s.quality for s in self.runs})
        found = {q: self.paper(method, steps, q) for q in qualities}
        return {q: run for q, run in found.items() if run is not None}

    def curves(self) -> dict[tuple[str, int], dict[int, Run]]:
        """All of at least two qualities, by method and steps; ours last."""
        names = [(m, steps) for steps in self.steps for m in METHODS]
        names += [(s.method, s.steps) for s in self.runs if s.method in OURS]
        found = {name: self.curve(*name) for name in dict.fromkeys(names)}
        return {name: curve for name, curve in found.items() if len(curve) > 1}


def _require_one_origin(cells: Mapping[str, Any]) -> None:
    """Numbers of different weights or crops must not stand in one table."""
    weights: dict[tuple[str, int, int], str] = {}
    for cell in cells.values():
        of = cell["of"]
        weights.setdefault((of["model"], of["setting"]["quality"], of["crop"]), of["sha256"])
        if weights[of["model"], of["setting"]["quality"], of["crop"]] != of["sha256"]:
            raise ValueError(f"quality {of['setting']['quality']} has cells of two weights; {CURE}")
    if len({(model, crop) for model, _, crop in weights}) > 1:
        raise ValueError(f"the results have cells of different models or crops; {CURE}")


CURE = "measure all parts again, or name another file with --out"


def points(curve: Mapping[int, Run], when: str = "after") -> dict[str, list[float]]:
    """Means over the images as `bd_rate` takes them."""
    runs = curve.values()
    return {
        "bpp": [run.mean(f"bpp_{when}") for run in runs],
        "psnr-rgb": [run.mean(f"psnr_db_{when}") for run in runs],
    }


@dataclass(frozen=True)
class Bd:
    """Bjontegaard deltas of two curves at the qualities that both have.

    Args:
        rate: of the means, percent.
        psnr: of the means, dB.
        by_image: BD-rates of single images; those whose points do not rise are missing.
        qualities: compared.
    """

    rate: Delta
    psnr: Delta
    by_image: Estimate | None
    qualities: tuple[int, ...]


def bd(
    anchor: Mapping[int, Run], test: Mapping[int, Run], anchor_when: str = "after", test_when: str = "after"
) -> Bd | None:
    """Compare two curves; None where they have no three qualities in common, or no interval."""
    common = [q for q in anchor if q in test]
    a, t = ({q: curve[q] for q in common} for curve in (anchor, test))
    try:
        rate = bd_rate(points(a, anchor_when), points(t, test_when))
        psnr = bd_psnr(points(a, anchor_when), points(t, test_when))
    except SgaError:
        return None
    rates = []
    for name in sorted(next(iter(a.values())).images):
        one, other = (
            {
                "bpp": [run.images[name][f"bpp_{when}"] for run in curve.values()],
                "psnr-rgb": [run.images[name][f"psnr_db_{when}"] for run in curve.values()],
            }
            for curve, when in ((a, anchor_when), (t, test_when))
        )
        try:
            rates.append(bd_rate(one, other).value)
        except SgaError:
            continue
    return Bd(rate, psnr, estimate(rates) if rates else None, tuple(common))
