# SPDX-License-Identifier: Apache-2.0
"""What a run leaves: joint weights for all rates, and stock weights with coding tables for each quality.

After training with noise and with straight-through gradients, the steps of rounding are about 20 % finer than
is best for the trade-off. So the latent is scaled by the factor that is best on held-out photographs.

In:  the state dict of the joint model; the gain of each quality.
Out: OUT/model.pth, for `gains.load_joint`; OUT/model-1.pth to OUT/model-8.pth, folded.
Fails with ``TrainingError`` where a file cannot be written.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from compressai.zoo.image import model_architectures
from torch import Tensor

from run_files import replace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from compressai_sga.models.gains import fold, load_joint, scale_latent  # noqa: E402

__all__ = ["best_scale", "export"]

SCALE_STEP = 0.95  # of the search


def best_scale(scores: Callable[[float], dict[str, Any]]) -> tuple[float, dict[str, Any]]:
    """The factor of y with the best `score` for all rates, and the scores with it."""
    scale, best = 1.0, scores(1.0)
    for factor in (SCALE_STEP, 1 / SCALE_STEP):
        while (tried := scores(scale * factor))["score"] < best["score"]:
            scale, best = scale * factor, tried
    return scale, best


def export(out: Path, arch: str, state: dict[str, Tensor], scale: float, gains: Mapping[int, float]) -> None:
    """Write the weights.

    Args:
        out: folder of the run.
        arch: name of the architecture.
        state: of the joint model, on the CPU.
        scale: factor of its latent.
        gains: of each quality.
    """
    architecture = model_architectures[arch]
    joint = scale_latent(load_joint(architecture, state), scale).state_dict()
    replace(out / "model.pth", lambda path: torch.save(joint, path))
    for quality, gain in gains.items():
        net = fold(load_joint(architecture, joint), gain)
        net.update(force=True)
        weights = net.state_dict()
        replace(out / f"model-{quality}.pth", lambda path, weights=weights: torch.save(weights, path))
