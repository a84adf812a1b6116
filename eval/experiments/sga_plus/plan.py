# SPDX-License-Identifier: Apache-2.0
"""The refinements that the claims of SGA+ need, as data (Perugachi-Diaz et al. 2024; `measure` runs them).

A `Setting` is one refinement of all images: a method with the paper's settings, some of them changed. From
the paper: lr 5e-3; T = min(T_max, exp(-1e-3 t)) with T_max = 1 for linear, cosine, SSL; a = 2.3. From Yang et
al. 2020: T_max = 0.5 for atanh (their formula differs from this one by a factor of 1.007), lr 1e-4 for STE.
The three-class methods have r, n and a of the authors' code. "fast" and "best" are our presets.

    curves   all methods by quality, at both numbers of steps; fast and best
    tmax     the upper bound of the temperature
    a        SSL's parameter: 2/3 has atanh's slope at the half-integer, 1 is linear, pi/2 has cosine's slope;
             a second seed, to measure the difference between seeds; fewer values with more steps at the
             lowest and the highest rate
    lr       the learning rate
    classes  two against three classes; SSL also with more steps and with lower temperatures
    loss     the loss of the method and the true loss during the run, for runs of the part curves
    rates    one model refined for the lambdas of the others

Settings that several parts share are measured once. The temperature depends on the step alone and is 0.61
after 500 steps. So in a run of 500 steps, every T_max up to 0.6 gives a constant temperature.

The decoder in the loop computes in bfloat16 where the processor has it, which halves the time. The presets
`*-paper` are float32; `objective` measures the difference.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

from compressai_sga import zoo
from compressai_sga.refine.presets import PRESETS, RefineConfig
from compressai_sga.schedules import Constant, Exponential

__all__ = ["FULL", "LABELS", "METHODS", "OURS", "PARTS", "REDUCED", "Plan", "Setting", "config", "paper"]

LABELS = {
    "ste": "STE",
    "noise": "noise",
    "atanh": "atanh",
    "linear": "linear",
    "cosine": "cosine",
    "ssl": "SSL",
    "linear3": "linear, 3 classes",
    "cosine3": "cosine, 3 classes",
    "ssl3": "SSL, 3 classes",
    "fast": "fast (ours)",
    "best": "best (ours)",
}
METHODS = ("ste", "noise", "atanh", "linear", "cosine", "ssl")
SGA = ("atanh", "linear", "cosine", "ssl")
THREE = {"linear": "linear3", "cosine": "cosine3", "ssl": "ssl3"}
OURS = ("fast", "best")
PARTS = ("curves", "tmax", "a", "lr", "classes", "loss", "rates")
SLOPES = {"atanh": 2 / 3, "linear": 1.0, "cosine": math.pi / 2}
SEED = 1  # the second one


@dataclass(frozen=True)
class Setting:
    """A refinement.

    Args:
        method: of METHODS or their three-class forms, or one of OURS.
        quality: of the zoo's model.
        steps: gradient steps.
        t_max: upper bound of the temperature; None where there is none to change.
        a: SSL's parameter; None for other methods.
        lr: learning rate; None for OURS.
        lmbda: trade-off; None: the one that the model was trained with.
        seed: of the noise.
    """

    method: str
    quality: int
    steps: int
    t_max: float | None = None
    a: float | None = None
    lr: float | None = None
    lmbda: float | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """What differs from the paper, after quality, method and steps."""
        own = paper(self.method, self.quality, self.steps)
        fields = ("t_max", "a", "lr", "lmbda", "seed")
        pairs = ((field, getattr(self, field)) for field in fields)
        changed = [f"{field}={value:.6g}" for field, value in pairs if value != getattr(own, field)]
        return " ".join([f"q{self.quality}", self.method, str(self.steps), *changed])


def _base(method: str) -> RefineConfig:
    """The preset that a method starts from."""
    if method in OURS:
        return PRESETS[method]
    return PRESETS["sga-paper" if method == "atanh" else f"{method}-paper"]


def paper(method: str, quality: int, steps: int) -> Setting:
    """A method with the numbers of its paper."""
    base = _base(method)
    return Setting(
        method,
        quality,
        steps,
        t_max=base.temperature.upper if isinstance(base.temperature, Exponential) else None,
        a=base.a if method in ("ssl", "ssl3") else None,
        lr=base.lr.value if isinstance(base.lr, Constant) else None,
    )


def config(setting: Setting) -> RefineConfig:
    """As `refine` takes it."""
    base, own = _base(setting.method), paper(setting.method, setting.quality, setting.steps)
    changes = {"steps": setting.steps, "lmbda": setting.lmbda, "seed": setting.seed, "precision": "auto"}
    if setting.t_max != own.t_max:
        changes["temperature"] = Exponential(rate=1e-3, upper=setting.t_max)
    if setting.a != own.a:
        changes["a"] = setting.a
    if setting.lr != own.lr:
        changes["lr"] = Constant(setting.lr)
    return dataclasses.replace(base, **changes)


@dataclass(frozen=True)
class Plan:
    """A form of the evaluation.

    Args:
        every: takes every so many images, from the first one on.
        crop: side of the square in the middle of each image; 0: the whole image.
        batch: images refined together.
        qualities: of the curves.
        middle: quality of all other parts.
        steps: budgets, rising.
        sweep_steps: those of the parts tmax, a, lr and classes.
        long_methods: methods of the curves at budgets above the first one.
        long_qualities: their qualities.
        lr_methods: methods of the part lr.
        rate_methods: methods of the part rates.
        t_max: upper bounds of the part tmax, rising; the first two also with three classes.
        a: of SSL at the middle quality.
        long_a: of SSL at the lowest and the highest of the long qualities, with the most steps.
        lr: learning rates.
    """

    every: int
    crop: int
    batch: int
    qualities: tuple[int, ...]
    middle: int
    steps: tuple[int, ...]
    sweep_steps: tuple[int, ...]
    long_methods: tuple[str, ...]
    long_qualities: tuple[int, ...]
    lr_methods: tuple[str, ...]
    rate_methods: tuple[str, ...]
    t_max: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    a: tuple[float, ...] = (2 / 3, 1.0, math.pi / 2, 2.3, 3.0, 4.0)
    long_a: tuple[float, ...] = (2 / 3, 1.0, 4 / 3)
    lr: tuple[float, ...] = (0.005, 0.01, 0.02)

    def settings(self, parts: Iterable[str], model: str) -> list[Setting]:
        """What these parts need, each once."""
        lmbdas = {r.quality: r.lmbda for r in zoo.list_models() if r.name == model}
        found = [each for part in parts for each in getattr(self, f"_{part}")(lmbdas)]
        return list(dict.fromkeys(found))

    def watched(self, setting: Setting) -> bool:
        """Whether the true loss is measured on the way."""
        own = paper(setting.method, self.middle, setting.steps)
        return setting.method not in OURS and dataclasses.replace(setting, lr=own.lr) == own

    def _curves(self, lmbdas: dict[int, float]) -> list[Setting]:
        first, *more = self.steps
        found = [paper(m, q, first) for m in METHODS for q in self.qualities]
        for steps in more:
            found += [paper(m, q, steps) for m in self.long_methods for q in self.long_qualities]
        return found + [paper(m, q, PRESETS[m].steps) for m in OURS for q in self.qualities]

    def _sweep(self, methods: Iterable[str], field: str, values: Iterable[float]) -> list[Setting]:
        return [
            dataclasses.replace(paper(method, self.middle, steps), **{field: value})
            for steps in self.sweep_steps
            for method in methods
            for value in values
        ]

    def _tmax(self, lmbdas: dict[int, float]) -> list[Setting]:
        return self._sweep(SGA, "t_max", self.t_max)

    def _a(self, lmbdas: dict[int, float]) -> list[Setting]:
        found = self._sweep(("ssl",), "a", self.a) + self._sweep(("ssl",), "seed", (SEED,))
        found += self._sweep(SLOPES, "t_max", (paper("ssl", self.middle, 1).t_max,))
        ends = min(self.long_qualities), max(self.long_qualities)
        long = [paper("ssl", quality, self.steps[-1]) for quality in dict.fromkeys(ends)]
        return found + [dataclasses.replace(own, a=a) for own in long for a in (own.a, *self.long_a)]

    def _lr(self, lmbdas: dict[int, float]) -> list[Setting]:
        own = self._sweep(self.lr_methods, "seed", (0,))  # STE's is not among the values
        return own + self._sweep(self.lr_methods, "lr", self.lr)

    def _classes(self, lmbdas: dict[int, float]) -> list[Setting]:
        pair = ("ssl", THREE["ssl"])
        found = self._sweep((*THREE, *THREE.values()), "seed", (0,)) + self._sweep(
            pair, "t_max", self.t_max[:2]
        )
        return found + [paper(method, self.middle, self.steps[-1]) for method in pair]

    def _loss(self, lmbdas: dict[int, float]) -> list[Setting]:
        first, *more = self.steps
        found = [paper(method, self.middle, first) for method in METHODS]
        return found + [paper(method, self.middle, steps) for steps in more for method in self.long_methods]

    def _rates(self, lmbdas: dict[int, float]) -> list[Setting]:
        steps, found = self.steps[0], []
        for method in self.rate_methods:
            family = [paper(method, quality, steps) for quality in self.qualities]
            one = paper(method, self.middle, steps)
            found += family
            found += [
                dataclasses.replace(one, lmbda=lmbdas[quality])
                for quality in self.qualities
                if quality != self.middle
            ]
        return found


REDUCED = Plan(
    every=4,
    crop=128,
    batch=6,
    qualities=(1, 3, 4, 6),
    middle=3,
    steps=(500, 2000),
    sweep_steps=(500,),
    long_methods=("atanh", "ssl"),
    long_qualities=(1, 3, 6),
    lr_methods=SGA,
    rate_methods=("ssl",),
    t_max=(0.2, 0.4, 0.6, 1.0),
    long_a=(4 / 3,),
)
FULL = Plan(
    every=1,
    crop=0,
    batch=6,
    qualities=(1, 2, 3, 4, 5, 6),
    middle=3,
    steps=(500, 2000),
    sweep_steps=(500, 2000),
    long_methods=METHODS,
    long_qualities=(1, 2, 3, 4, 5, 6),
    lr_methods=METHODS,
    rate_methods=("atanh", "ssl"),
)
