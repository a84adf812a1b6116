# SPDX-License-Identifier: Apache-2.0
"""DiffC on Gaussian sources: the process of the codec against the closed forms.

Theis et al. 2022. x ~ N(0, diag(lam)) is sent level by level over an ideal channel with the exact denoiser
(`models.diffc.process`), and reconstructed by both of the codec's samplers. `diffusion.gaussian_rates` has
the expected values: I(x; z) for the bits, D_A and D_F for the squared errors.

A finite number of steps has two effects of first order: the bits rise by about half a step of log-SNR
(`discretised_rate_bits`), and a sample of the posterior has slightly too little variance.

In:  variances lam (n,), levels of noise s2 = sigma^2 in (0, 1), numbers of draws and steps, a seed.
Out: dictionaries of numbers: means over the draws with their standard errors. Bits and squared errors are
     those of a whole vector.
Fails as `models.diffc.process` does.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from compressai_sga.diffusion import gaussian_rates
from compressai_sga.diffusion.gaussian import DiagonalGaussian
from compressai_sga.diffusion.samplers import torch_noise
from compressai_sga.diffusion.schedules import LinearLogSnr, grid
from compressai_sga.models.diffc import costs
from compressai_sga.models.diffc import process as chain
from compressai_sga.tasks.records import mean_error

__all__ = ["LAM", "STEPS_GRID", "Spacing", "levels_in", "log_snr_of", "marked_grid", "simulate", "steps_cost"]

Spacing = Literal["equal", "best"]

LAM = {
    "scalar": torch.ones(1, dtype=torch.float64),
    "spectrum": 1 / torch.arange(1, 65, dtype=torch.float64) ** 2,
}
"""Sources: a standard normal number; 64 coordinates of the variances 1 / k^2."""

STEPS_GRID = LinearLogSnr(-12.0, 6.0)
"""Where the price of few steps is looked at."""

LOWEST = -12.0  # log-SNR at which sending starts: 1e-5 bits of a standard normal number
CLEAN = 14.0  # log-SNR from which a reconstruction takes its last step; sigma^2 is 8e-7
FLOW_STEPS = 100  # second order: a draw of the posterior needs many more
RUNGS = 361  # of the ladder on which the best levels are looked for, 0.05 apart


def log_snr_of(s2: float) -> float:
    """Of z = sqrt(1 - s2) x + sqrt(s2) eps."""
    return math.log1p(-s2) - math.log(s2)


def marked_grid(marks: Sequence[float], lowest: float, step: float) -> Tensor:
    """Rising log-SNRs from `lowest` through every mark, at most `step` apart."""
    points = [lowest, *sorted(marks)]
    parts = [torch.tensor([lowest], dtype=torch.float64)]
    for low, high in itertools.pairwise(points):
        count = math.ceil((high - low) / step - 1e-9)
        parts.append(torch.linspace(low, high, count + 1, dtype=torch.float64)[1:])
    return torch.cat(parts)


def simulate(
    source: str, s2s: Sequence[float], draws: int, step: float, ancestral_steps: int, seed: int
) -> dict[str, Any]:
    """Bits and squared errors at the levels s2s, which one run of the process passes.

    Args:
        source: key of `LAM`.
        s2s: variances of the noise at which the sending may stop.
        draws: vectors.
        step: largest step of the log-SNR in the process.
        ancestral_steps: of that reconstruction.
        seed: of all randomness.

    Returns:
        "levels": for each s2, rising rate, measured {bits, ancestral, flow} as {mean, error}, the closed
        forms of the same names under "formula", "discretised_bits", and the gain of flow over ancestral in
        dB.
    """
    lam = LAM[source]
    denoiser = DiagonalGaussian(0.0, lam)
    generator = torch.Generator().manual_seed(seed)
    x = denoiser.draw(torch.randn(draws, len(lam), generator=generator))
    marks = {log_snr_of(s2): s2 for s2 in s2s}
    log_snrs = marked_grid(list(marks), LOWEST, step)
    bits = torch.zeros(draws, dtype=torch.float64)
    found = []
    for count, level in enumerate(chain.ideal_levels(denoiser, x, log_snrs, generator, start="sent"), 1):
        bits += level.bits
        if level.log_snr not in marks:
            continue
        values: dict[str, Any] = {
            "s2": marks[level.log_snr],
            "steps": count - 1,
            "bits": mean_error(bits.numpy()),
        }
        for method, steps in (("ancestral", ancestral_steps), ("flow", FLOW_STEPS)):
            x_hat = chain.reconstruct(
                denoiser, level.z, level.log_snr, method=method, steps=steps, highest=CLEAN,
                noise=torch_noise(generator),
            )  # fmt: skip
            values[method] = mean_error((x_hat - x).square().sum(1).numpy())
        values["gain_db"] = gain_db(values["ancestral"]["mean"], values["flow"]["mean"])
        values["discretised_bits"] = float(gaussian_rates.discretised_rate_bits(lam, log_snrs[:count]))
        values["formula"] = formula(lam, values["s2"])
        found.append(values)
    return {"levels": found}


def formula(lam: Tensor, s2: float) -> dict[str, float]:
    """The closed forms at this noise: DiffC's own, and at the same rate the bounds and schemes beside it."""
    ancestral, flow = gaussian_rates.ancestral(lam, s2), gaussian_rates.flow(lam, s2)
    bits = float(flow.bits)
    beside = {
        "ancestral_filled": gaussian_rates.water_filled_ancestral,
        "flow_filled": gaussian_rates.water_filled_flow,
        "realism_optimum": gaussian_rates.realism_optimum,
        "rate_distortion": gaussian_rates.rate_distortion,
    }
    return {
        "bits": bits,
        "ancestral": float(ancestral.distortion),
        "flow": float(flow.distortion),
        "gain_db": gain_db(float(ancestral.distortion), float(flow.distortion)),
    } | {name: float(scheme(lam, bits).distortion) for name, scheme in beside.items()}


def gain_db(ancestral: float, flow: float) -> float:
    return 10 * math.log10(ancestral / flow)


def levels_in(steps: int, spacing: Spacing) -> Tensor:
    """Log-SNRs (steps + 1,) over `STEPS_GRID`, equally spaced or where dynamic programming puts them."""
    if spacing == "equal":
        return grid(STEPS_GRID, steps, clean=False)
    if spacing == "best":
        ladder = _ladder()
        path = costs.shortest_path(ladder, 1, costs.StepCost(0, 0), steps)
        return torch.tensor([ladder.log_snr(rung) for rung in path], dtype=torch.float64)
    raise ValueError(f"spacing is {spacing!r}; it must be one of {', '.join(get_args(Spacing))}")


@functools.cache
def _ladder() -> costs.Ladder:
    """Of a standard normal number, whose denoiser has the error sigma^2."""
    rungs = torch.linspace(STEPS_GRID.lowest, STEPS_GRID.highest, RUNGS, dtype=torch.float64)
    errors = torch.sigmoid(-rungs) / costs.ERROR_UNIT
    return costs.Ladder(STEPS_GRID.lowest, STEPS_GRID.highest, tuple(errors.round().long().tolist()))


def steps_cost(steps: int, spacing: Spacing, draws: int, seed: int) -> dict[str, Any]:
    """Bits of a standard normal number in so many steps: by the process, by the formula, and ideally."""
    lam, log_snrs = LAM["scalar"], levels_in(steps, spacing)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(draws, 1, generator=generator)
    bits = torch.zeros(draws, dtype=torch.float64)
    for level in chain.ideal_levels(DiagonalGaussian(0.0, lam), x, log_snrs, generator, start="sent"):
        bits += level.bits
    return {
        "bits": mean_error(bits.numpy()),
        "formula_bits": float(gaussian_rates.discretised_rate_bits(lam, log_snrs)),
        "information_bits": float(gaussian_rates.rate_bits(lam, torch.sigmoid(-log_snrs[-1]))),
    }
