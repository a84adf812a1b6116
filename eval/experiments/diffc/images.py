# SPDX-License-Identifier: Apache-2.0
"""DiffC's channels on images: bytes against divergences, the bias of a channel, its effect on the image.

The codec itself (`models.diffc.codec`) sends an image at a target rate, and its channel is recorded: each
step asks for a draw of N(shift, I) and gets normal numbers. Over the steps of an image

    dot, square = sum <normal, shift>, sum |shift|^2    shrinkage 1 - dot / square, 0 of an ideal channel
    along_square = sum (<normal, shift> - |shift|^2)^2 / |shift|^2, of N(0, 1) numbers of an ideal channel

An ideal channel (`DiffC.forward`) takes the same steps for the sum of the divergences. The two images differ
by the effect of the bias on the later steps, the two rates by the overhead of the bytes.

In:  a `DiffC` model with its cost table, an image (1, 3, H, W) in [0, 1], a channel, bits a pixel to aim at.
Out: dictionaries of numbers of one image, for the cells of a results file.
Fails as the codec does; with ``FileNotFoundError`` or ``ValueError`` if weights or photographs are missing.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compressai.utils.eval_model.__main__ import read_image
from torch import Tensor

from compressai_sga import zoo
from compressai_sga.models.diffc import DiffC, DiffCFlow, PixelDenoiser
from compressai_sga.models.diffc.channel import Channel
from compressai_sga.models.diffc.codec import StepReport, encode_image
from compressai_sga.models.diffc.exact_denoiser import module_tag
from compressai_sga.models.diffc.pixel_diffusion import pixel_diffusion
from experiments.diffc.beside import psnr_db

__all__ = ["Watched", "bias", "ideal", "load", "npz_crops", "photo_crops", "sent", "tag"]

COST_CROPS = 32


# --- The model ---------------------------------------------------------------------------------------


def load(weights: Path | None, crops: Callable[..., Tensor], kept: Path, device: str) -> DiffC:
    """DiffC-F with these weights and a cost table.

    Args:
        weights: state dict of a `DiffC` model, or of a `PixelDenoiser`, which has no cost table; None for the
            zoo's.
        crops: (size=window) -> training images (N, 3, window, window), to measure one.
        kept: folder where a table that was measured is found again.
        device: of the model.
    """
    if weights is None:
        return zoo.load("diffc-f-small", 4).to(device)
    if not weights.is_file():
        raise FileNotFoundError(
            f"no file {weights}; name a state dict, or leave it out for the zoo's diffc-f-small"
        )
    state = torch.load(weights, map_location="cpu", weights_only=True)
    if "costs" in state:
        return DiffCFlow.from_state_dict(state).to(device)
    model = DiffCFlow(PixelDenoiser.from_state_dict(state), progress=False)
    table = kept / f"costs-{tag(model)}.pt"
    if table.is_file():
        model.costs.copy_(torch.load(table, weights_only=True))
    else:
        model.measure_costs(crops(size=pixel_diffusion(model.denoiser).window))
        kept.mkdir(parents=True, exist_ok=True)
        torch.save(model.costs, table)
    return model.to(device)


def photo_crops(folder: Path, size: int, seed: int, count: int = COST_CROPS) -> Tensor:
    """Random crops (count, 3, size, size) of the photographs below a folder."""
    files = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"}
    )
    if not files:
        raise FileNotFoundError(f"no photograph in {folder}; name a folder for the cost table with --photos")
    generator = torch.Generator().manual_seed(seed)
    crops = []
    for pick in torch.randint(len(files), (count,), generator=generator).tolist():
        x = read_image(files[pick])
        top, left = (int(torch.randint(side - size + 1, (), generator=generator)) for side in x.shape[1:])
        crops.append(x[:, top : top + size, left : left + size])
    return torch.stack(crops)


def npz_crops(path: Path, size: int, count: int = COST_CROPS) -> Tensor:
    """The first training images of an .npz file, (count, 3, size, size)."""
    images = torch.from_numpy(np.load(path)["train"][:count]).permute(0, 3, 1, 2).float() / 255
    if tuple(images.shape[2:]) != (size, size):
        raise ValueError(
            f"the images of {path} are {tuple(images.shape[2:])} px, the network's window is {size} px"
        )
    return images


def tag(model: DiffC) -> str:
    """Of weights and costs."""
    return f"{module_tag(model):08x}"


# --- The channel --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Watched(Channel):
    """A channel that keeps what it was asked for and what it delivered, step by step.

    Args:
        asked, got: lists to fill.
    """

    asked: list[Tensor] = dataclasses.field(default_factory=list)
    got: list[Tensor] = dataclasses.field(default_factory=list)

    def send(self, shift: Tensor, kl_millibits: int, *, seed: int, step: int) -> list[Tensor]:
        self.asked.append(shift.double())
        return super().send(shift, kl_millibits, seed=seed, step=step)

    def receive(self, numbers: list[Tensor], dims: int, kl_millibits: int, *, seed: int, step: int) -> Tensor:
        self.got.append(super().receive(numbers, dims, kl_millibits, seed=seed, step=step))
        return self.got[-1]


@torch.no_grad()
def sent(model: DiffC, x: Tensor, method: str, size: int, bpp: float) -> dict[str, Any]:
    """An image (1, 3, H, W) over a channel: bytes, divergences, bias, and the flow's reconstruction."""
    pixels = x.shape[2] * x.shape[3]
    watched = Watched(method, size)
    coder = dataclasses.replace(model.coder(), channel=watched)
    steps: list[StepReport] = []
    start = time.perf_counter()
    signal = pixel_diffusion(model.denoiser).to_signal(x)[0]
    code = encode_image(signal, coder, target_bits=bpp * pixels, progress=steps.append)
    seconds = time.perf_counter() - start
    x_hat = model._image(code.z[None].to(x.device), code.log_snr, model.seed).clamp(0, 1)
    # The encoder may have tried a step more than it kept.
    kept = list(zip(watched.asked, watched.got, strict=True))[: code.steps]
    dots = np.array([float(normal.to(shift) @ shift) for shift, normal in kept])
    squares = np.array([float(shift @ shift) for shift, _ in kept])
    return {
        "bytes": len(code.data),
        "kl_bits": sum(step.kl_bits for step in steps),
        "steps": code.steps,
        "log_snr": code.log_snr,
        "psnr_db": psnr_db(x, x_hat),
        "dot": dots.sum(),
        "square": squares.sum(),
        "along_square": np.square((dots - squares) / np.sqrt(squares)).sum(),
        "seconds": seconds,
    }


@torch.no_grad()
def ideal(model: DiffC, x: Tensor, bpp: float) -> dict[str, Any]:
    """The same over an ideal channel, whose bits are the divergences."""
    model.bpp = bpp
    out = model(x)
    bits = -float(out["likelihoods"]["z"].double().log2().sum())
    return {"kl_bits": bits, "bytes": bits / 8, "psnr_db": psnr_db(x, out["x_hat"].clamp(0, 1))}


def bias(values: list[dict[str, Any]]) -> dict[str, float]:
    """Of several images: shrinkage with its standard error, and the deviation along the shift.

    The deviation is of <normal, shift> / |shift| around its shrunken mean, over all steps; 1 of an ideal
    channel.
    """
    dot, square, along = (sum(v[key] for v in values) for key in ("dot", "square", "along_square"))
    shrinkage = 1 - dot / square
    # sum (along + shrinkage |shift|)^2
    rest = max(0.0, along + 2 * shrinkage * (dot - square) + shrinkage**2 * square)
    return {
        "shrinkage": shrinkage,
        "error": 1 / math.sqrt(square),  # of an unbiased channel
        "std_along": math.sqrt(rest / sum(v["steps"] for v in values)),
    }
