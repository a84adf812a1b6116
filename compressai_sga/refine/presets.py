# SPDX-License-Identifier: Apache-2.0
"""The settings of a refinement: methods, presets, and the configuration made from them.

A method is a relaxation of rounding; a preset is a method with its schedules, learning rate and
parameters. Every method has a preset of the same name, with our settings. The presets called `*-paper` have
the papers' relaxation, schedule, learning rate, steps and shape parameters, and compute in float32.
docs/refinement.md lists where they deviate from the authors' code. To add a method: a function in
relaxations.py, a row in METHODS, a row in _ROWS; the tests take every row.

Fails with a ``ValueError`` that lists the choices.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..schedules import Constant, Cosine, Exponential, Geometric, Linear, StepDecay
from ..typing import Distortion, Schedule

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .synthesis import Precision

__all__ = ["METHODS", "PRESETS", "RefineConfig"]

MAX_STEPS = 10**9
MAX_SEED = 2**63 - 1
MAX_FACTOR = 1e6
"""Of lmbda and learning rate: the squares of gradients must be finite in float32."""


@dataclass(frozen=True)
class RefineConfig:
    """Everything that decides how latents are refined; equal configurations give equal bytes.

    Attributes:
        method: key of METHODS.
        preset: the preset that this came from.
        steps: gradient steps.
        lr: learning rate of Adam, as a function of the step.
        temperature: of the relaxation.
        noise: second annealed quantity: the noise's standard deviation (soft-round), Kumaraswamy's a
            (soft-round-kumaraswamy), or the concrete distribution's own temperature (two classes);
            None: the two-class methods use `temperature` for both, as in the papers.
        a, r, n: shape parameters of SSL and of the three-class methods.
        lmbda: weight of the distortion, as CompressAI defines it; None: the model's training value.
        metric: distortion.
        seed: of all noise.
        betas: Adam's.
        hard_evaluations: hard roundings tried on the way, the last step's included; the best is kept.
        polish: sweeps of single-symbol changes after the gradient steps (`rdoq`), kept where the loss falls.
        precision: of the synthesis transform in the loop; results are always measured in float32.
    """

    method: str
    preset: str
    steps: int
    lr: Schedule
    temperature: Schedule
    noise: Schedule | None = None
    a: float = 1.0
    r: float = 1.0
    n: float = 1.0
    lmbda: float | None = None
    metric: Distortion = "mse"
    seed: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    hard_evaluations: int = 5
    polish: int = 0
    precision: Precision = "auto"

    @classmethod
    def make(
        cls,
        method: str | None = None,
        preset: str | None = None,
        steps: int | None = None,
        lmbda: float | None = None,
        lr: float | None = None,
        seed: int = 0,
        metric: Distortion = "mse",
    ) -> RefineConfig:
        """A preset, with some of its settings replaced.

        Args:
            method: with no preset, the preset of the same name, which may also be one that no method shares
                its name with ("fast", "ssl-paper"); with a preset, a method that replaces the preset's
                relaxation, with its own shape parameters.
            preset: key of PRESETS; default "ssl" when no method is named either.
            steps, lmbda, lr: None keeps the preset's; `lr` scales the whole learning-rate schedule.
            seed: a whole number from 0 to 2^63 - 1.

        Raises:
            ValueError: unknown name (the message lists the known ones) or a number out of range.
        """
        method = ALIASES.get(method, method)
        if method in PRESETS and method not in METHODS:
            if preset not in (None, method):
                raise ValueError(f"{method} and {preset} are both presets of refinement; name one of them")
            method, preset = None, method
        if method is not None and method not in METHODS:
            raise ValueError(f"unknown refinement method {method!r}; choose from {', '.join(PRESETS)}")
        preset = preset or method or "ssl"
        if preset not in PRESETS:
            raise ValueError(f"unknown refinement preset {preset!r}; choose from {', '.join(PRESETS)}")
        if metric not in ("mse", "ms-ssim"):
            raise ValueError(f"unknown distortion {metric!r}; choose from mse, ms-ssim")
        steps = None if steps is None else _whole("refinement steps", steps, MAX_STEPS)
        for name, value in (("lmbda", lmbda), ("learning rate", lr)):
            if value is not None and not 0 < value <= MAX_FACTOR:
                raise ValueError(f"{name} must be above 0 and at most {MAX_FACTOR:g}, not {value}")
        changes: dict[str, Any] = {"lmbda": lmbda, "seed": _whole("seed", seed, MAX_SEED), "metric": metric}
        base = PRESETS[preset]
        if method is not None and method != base.method:  # its parameters come with it
            own = PRESETS[method]
            changes |= {key: getattr(own, key) for key in ("method", "noise", "a", "r", "n")}
        if steps is not None:
            changes["steps"] = steps
        if lr is not None:
            field = "start" if isinstance(base.lr, Cosine) else "value"
            changes["lr"] = dataclasses.replace(base.lr, **{field: float(lr)})
        return dataclasses.replace(base, **changes)

    def relax(self, v: Tensor, step: int, generator: torch.Generator) -> Tensor:
        """The relaxed rounding of v at a step."""
        noise = None if self.noise is None else self.noise(step, self.steps)
        return METHODS[self.method](v, self.temperature(step, self.steps), generator, self, noise)


def _whole(name: str, value: Any, most: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number <= most:
        raise ValueError(f"{name} must be a whole number from 0 to {most}, not {value!r}")
    return number


Method = Callable[["Tensor", float, "torch.Generator", RefineConfig, "float | None"], "Tensor"]


def _relaxations() -> ModuleType:
    """The module, which is imported here so that the names of presets need no PyTorch."""
    from .. import relaxations

    return relaxations


def _two_class(logit: str, *parameters: str) -> Method:
    def relax(v, temperature, generator, config, noise):
        r = _relaxations()
        chosen = partial(getattr(r, logit), **{name: getattr(config, name) for name in parameters})
        return r.binary_concrete(v, temperature, generator, chosen, noise)

    return relax


def _three_class(log_weight: str, *parameters: str) -> Method:
    def relax(v, temperature, generator, config, noise):
        r = _relaxations()
        chosen = partial(getattr(r, log_weight), **{name: getattr(config, name) for name in parameters})
        return r.ternary_concrete(v, temperature, generator, chosen)

    return relax


def _plain(relaxation: str) -> Method:
    def relax(v, temperature, generator, config, noise):
        return getattr(_relaxations(), relaxation)(v, temperature, generator)

    return relax


def _soft_round(noise_of: str) -> Method:
    def relax(v, temperature, generator, config, noise):
        r = _relaxations()
        return r.soft_round_around_noise(
            v, temperature, generator, lambda v, generator: getattr(r, noise_of)(v, generator, noise)
        )

    return relax


METHODS: dict[str, Method] = {
    "ste": _plain("ste"),
    "noise": _plain("uniform_noise"),
    "annealing": _plain("deterministic_annealing"),
    "atanh": _two_class("atanh_logit"),
    "linear": _two_class("linear_logit"),
    "cosine": _two_class("cosine_logit"),
    "ssl": _two_class("ssl_logit", "a"),
    "linear3": _three_class("linear3_log_weight", "r", "n"),
    "cosine3": _three_class("cosine3_log_weight", "r", "n"),
    "ssl3": _three_class("ssl3_log_weight", "r", "n", "a"),
    "soft-round": _soft_round("gaussian_noise"),
    "soft-round-kumaraswamy": _soft_round("kumaraswamy_noise"),
}
ALIASES = {"sga": "atanh"}

# Yang et al. 2020: T = min(0.5, 0.5 exp(-1e-3 (t - 700))), Adam 5e-3, 2000 steps.
YANG = Exponential(rate=1e-3, upper=0.5, scale=0.5, offset=700)
# Their deterministic annealing, with the same Adam.
ANNEALING = Exponential(rate=4e-3, upper=0.2)
# Yang & Mandt 2023: T = min(0.5, 0.5 exp(-5e-4 (t - 200))), Adam 5e-3 and 5e-4 after 90 % of 3000 steps.
YANG_2023 = Exponential(rate=5e-4, upper=0.5, scale=0.5, offset=200)
# SGA+: T = min(1, exp(-1e-3 t)), Adam 5e-3, 2000 steps. STE: Adam 1e-4, as in Yang et al.
SGA_PLUS = Exponential(rate=1e-3, upper=1.0)
PAPER: dict[str, Any] = {
    "steps": 2000,
    "lr": Constant(5e-3),
    "hard_evaluations": 1,
    "precision": "float32",
}

# Ours: the same anneal whatever the budget, larger first steps, learning rate falling to zero.
SCALED: dict[str, Any] = {
    "steps": 200,
    "lr": Cosine(2e-2, warmup=5),
    "temperature": Geometric(0.6, 0.1),
}

_ROWS: dict[str, dict[str, Any]] = {
    "ste": {"method": "ste", **SCALED, "lr": Cosine(1e-3, warmup=5)},
    "noise": {"method": "noise", **SCALED},
    "annealing": {"method": "annealing", **SCALED, "temperature": Geometric(0.2, 0.02)},
    "atanh": {"method": "atanh", **SCALED},
    "linear": {"method": "linear", **SCALED},
    "cosine": {"method": "cosine", **SCALED},
    "ssl": {
        "method": "ssl",
        **SCALED,
        "lr": Cosine(2.5e-2, warmup=5),
        "temperature": Geometric(1.0, 0.2),
        "a": 2.3,
    },
    "linear3": {"method": "linear3", **SCALED, "r": 0.98, "n": 1.5},
    "cosine3": {"method": "cosine3", **SCALED, "r": 0.98, "n": 2.0},
    "ssl3": {"method": "ssl3", **SCALED, "a": 1.4, "r": 0.98, "n": 1.4},
    "soft-round": {
        "method": "soft-round",
        "steps": 200,
        "lr": Cosine(5e-2, warmup=5),
        "temperature": Linear(0.35, 0.08),
        "noise": Linear(0.22, 0.15),
    },
    "soft-round-kumaraswamy": {
        "method": "soft-round-kumaraswamy",
        "steps": 200,
        "lr": Cosine(5e-2, warmup=5),
        "temperature": Linear(0.3, 0.1),
        "noise": Linear(2.0, 1.0),
    },
    "sga-paper": {"method": "atanh", **PAPER, "temperature": YANG},
    "sga-2023-paper": {
        "method": "atanh",
        **PAPER,
        "steps": 3000,
        "lr": StepDecay(5e-3),
        "temperature": YANG_2023,
    },
    "annealing-paper": {"method": "annealing", **PAPER, "temperature": ANNEALING},
    "linear-paper": {"method": "linear", **PAPER, "temperature": SGA_PLUS},
    "cosine-paper": {"method": "cosine", **PAPER, "temperature": SGA_PLUS},
    "ssl-paper": {"method": "ssl", **PAPER, "temperature": SGA_PLUS, "a": 2.3},
    "linear3-paper": {"method": "linear3", **PAPER, "temperature": SGA_PLUS, "r": 0.98, "n": 1.5},
    "cosine3-paper": {"method": "cosine3", **PAPER, "temperature": SGA_PLUS, "r": 0.98, "n": 2.0},
    "ssl3-paper": {"method": "ssl3", **PAPER, "temperature": SGA_PLUS, "a": 1.4, "r": 0.98, "n": 1.4},
    "ste-paper": {"method": "ste", **PAPER, "lr": Constant(1e-4), "temperature": Constant(0.0)},
    "noise-paper": {"method": "noise", **PAPER, "temperature": Constant(0.0)},
    # A sweep of the polish costs about a step, its curvature about five: 99 and 499 in all.
    "fast": {
        "method": "soft-round",
        "steps": 86,
        "lr": Cosine(9e-2, warmup=3),
        "temperature": Linear(0.5, 0.08),
        "noise": Linear(0.22, 0.15),
        "polish": 8,
    },
    # No gradient step and no noise: only the greedy changes, about 45 steps' worth of time.
    "polish": {
        "method": "soft-round",
        "steps": 0,
        "lr": Constant(0.0),
        "temperature": Constant(0.0),
        "noise": Constant(0.0),
        "polish": 40,
    },
    "best": {
        "method": "soft-round",
        "steps": 470,
        "lr": Cosine(8e-2, warmup=5),
        "temperature": Linear(0.35, 0.08),
        "noise": Linear(0.22, 0.15),
        "polish": 24,
    },
}
PRESETS: dict[str, RefineConfig] = {name: RefineConfig(preset=name, **row) for name, row in _ROWS.items()}
