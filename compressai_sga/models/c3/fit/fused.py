# SPDX-License-Identifier: Apache-2.0
"""The loss of a fit and its gradients in C++, five times as fast as PyTorch on a CPU.

The functions of `network` remain the specification, and what a GPU runs. Here one pass over the rows of an
image does the same in float32, forward and backward, without a tensor of contexts or of hidden values, for
every architecture; the noise, the nets' bits, SOAP and Adam stay in PyTorch. There are three sets of
instructions, `portable`, `avx2` and `avx512`, whose results differ in the last bits. The number of threads,
torch's, changes nothing.

In:  planes of `grid_plane` (B, height, width); nets (B, parameters), flat, in the order of `config.layout`;
     float32, on the CPU.
Out: losses (B,), differentiable.
Fails with ``ValueError`` for instructions that this processor does not have.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from .. import native
from ..config import Architecture
from .grid_plane import GridPlane

__all__ = ["Backend", "FusedLoss", "Since", "fused_loss"]

Backend = Literal["auto", "torch", "portable", "avx2", "avx512"]
Since = Literal["latents", "channels", "refinement"]


def fused_loss(
    architecture: Architecture, grid_plane: GridPlane, x: Tensor, backend: Backend = "auto"
) -> FusedLoss | None:
    """The loss of images by a backend, `auto` being the fastest; None for PyTorch, see `FusedLoss`.

    Raises:
        ValueError: no such backend here.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend is {backend!r}; choose one of {', '.join(get_args(Backend))}")
    device = x.device.type
    able = ("torch", *native.KERNELS) if device == "cpu" else ("torch",)
    if backend == "auto":
        backend = able[1] if len(able) > 1 else "torch"
        if device == "cpu" and backend == "torch":
            warnings.warn(
                "C3's extension in C++ was not built, so a fit takes about five times as long; "
                "`pip install .` builds it where there is a C++17 compiler",
                stacklevel=3,
            )
    if backend not in able:
        raise ValueError(f"backend is {backend!r}; on this {device} there are auto, {', '.join(able)}")
    return None if backend == "torch" else FusedLoss(architecture, grid_plane, x, backend)


class FusedLoss:
    """The loss of B images.

    Args:
        architecture: of the codec.
        grid_plane: of the images.
        x: (B, 3, H, W).
        backend: a set of instructions.
    """

    def __init__(
        self, architecture: Architecture, grid_plane: GridPlane, x: Tensor, backend: Backend
    ) -> None:
        self.backend, self._x = backend, x.contiguous().numpy()
        size = (int(x.shape[2]), int(x.shape[3]))
        self.px = size[0] * size[1]
        plane, places = (grid_plane.height, grid_plane.width), grid_plane.places
        self.steps = [native.fit_step(architecture, size, plane, places, backend) for _ in x]

    def __call__(self, plane: Tensor, nets: Tensor, lmbda: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """mse + lmbda * bpp, differentiable; and mse, bpp of the latents; each (B,)."""
        return _Loss.apply(plane, nets, lmbda, self)

    def soften(self, plane: Tensor, gain: Tensor, noise: Tensor, temperature: float) -> Tensor:
        """soft_round(soft_round(plane * gain) + noise), with a gradient to the plane; see `relaxations`.

        Args:
            plane: (B, height, width).
            gain, noise: (1, height, width).
            temperature: > 0.
        """
        return _Soften.apply(plane, gain, noise, temperature, self.backend)

    def load(self, plane: Tensor) -> None:
        """The latents of `bits`."""
        for step, latents in zip(self.steps, _arrays(plane)):
            step.load(latents, torch.get_num_threads())

    def bits(self, nets: Tensor) -> Tensor:
        """Bits of the latents of `load`, (B,)."""
        threads = torch.get_num_threads()
        return torch.tensor([step.bits(flat, threads) for step, flat in zip(self.steps, _arrays(nets))])

    def error(self, plane: Tensor, nets: Tensor, since: Since = "latents") -> Tensor:
        """mse of the images within [0, 1], (B,).

        Args:
            plane: latents.
            nets: (B, parameters).
            since: what has changed after the last call: upsampling, synthesis or 3x3 layers come first.
        """
        number, threads = get_args(Since).index(since), torch.get_num_threads()
        found = [
            step.squares(latents, flat, x, True, number, threads)
            for step, latents, flat, x in zip(self.steps, _arrays(plane), _arrays(nets), self._x)
        ]
        return torch.tensor(found, dtype=torch.float64).div(3 * self.px).float()


class _Loss(torch.autograd.Function):
    """See `FusedLoss.__call__`; the gradient is found together with the loss."""

    @staticmethod
    def forward(
        ctx, plane: Tensor, nets: Tensor, lmbda: Tensor, of: FusedLoss
    ) -> tuple[Tensor, Tensor, Tensor]:
        threads, to_latents = torch.get_num_threads(), ctx.needs_input_grad[0]
        squares, bits, d_plane, d_nets = zip(
            *(
                step.run(latents, flat, x, weight / of.px, to_latents, threads)
                for step, latents, flat, x, weight in zip(
                    of.steps, _arrays(plane), _arrays(nets), of._x, lmbda.tolist()
                )
            )
        )
        ctx.gradients = (_stacked(d_plane) if to_latents else None, _stacked(d_nets))
        mse = torch.tensor(squares, dtype=torch.float64).div(3 * of.px).float()
        bpp = torch.tensor(bits, dtype=torch.float64).div(of.px).float()
        ctx.mark_non_differentiable(mse, bpp)
        return mse + lmbda * bpp, mse, bpp

    @staticmethod
    def backward(ctx, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        d_plane, d_nets = ctx.gradients
        if d_plane is not None:
            d_plane = d_plane.mul_(gradient[:, None, None])
        return d_plane, d_nets.mul_(gradient[:, None]), None, None


class _Soften(torch.autograd.Function):
    """See `FusedLoss.soften`."""

    @staticmethod
    def forward(
        ctx, plane: Tensor, gain: Tensor, noise: Tensor, temperature: float, backend: Backend
    ) -> Tensor:
        scale, draws = gain[0].numpy(), noise[0].numpy()
        found, slopes = zip(
            *(native.soften(latents, scale, draws, temperature, backend) for latents in _arrays(plane))
        )
        ctx.slopes = _stacked(slopes)
        return _stacked(found)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        return ctx.slopes.mul_(gradient), None, None, None, None


def _arrays(batch: Tensor) -> np.ndarray:
    return batch.detach().contiguous().numpy()


def _stacked(arrays: Sequence[np.ndarray]) -> Tensor:
    if len(arrays) == 1:  # as it is
        return torch.from_numpy(arrays[0])[None]
    return torch.from_numpy(np.stack(arrays))
