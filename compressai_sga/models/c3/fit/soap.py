# SPDX-License-Identifier: Apache-2.0
"""SOAP (Vyas et al. 2024, "Improving and Stabilizing Shampoo using Adam") for the nets of B fits at once.

For a matrix W with gradient G, running means L of G G^T and R of G^T G have eigenvectors U and V. Adam runs
on the gradient in their basis, where its coordinates are nearly uncorrelated:
    G' = U^T G V,   M' = U^T M V,   W <- W - rate U (M' / sqrt(mean of G'^2)) V^T,   M the mean of G.
The eigenvectors are updated every few steps by one power iteration, Q <- QR(L Q), with the columns sorted by
their share of L. So most steps cost only a few products of matrices no wider than 50.

A layer's bias is the last column of its matrix: a layer is one linear map of its inputs and a constant 1.
Nets are flat here, (B, parameters), as in `loop`; each image has its own bases and its own rate. With
`kernels`, all but the update of the bases is done in C++: the matrices are so small that PyTorch's calls take
longer than the products.

In:  parameters (B, P) with gradient; specs of `config.layout`. Out: parameters, updated in place.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .. import native
from ..config import ArraySpec

__all__ = ["Soap"]


class Soap:
    """SOAP for flat nets; see the file's head.

    Args:
        nets: (B, parameters), updated in place.
        specs: what the parameters are.
        betas: decay of the mean gradient, and of its square in the basis and of L and R.
        every: steps between two updates of the bases.
        kernels: one of `native.KERNELS`, for nets on the CPU; PyTorch by default.
    """

    def __init__(
        self,
        nets: Tensor,
        specs: Sequence[ArraySpec],
        betas: tuple[float, float] = (0.95, 0.95),
        every: int = 10,
        kernels: str | None = None,
    ) -> None:
        self.kernels = kernels
        self.parameters, self.betas, self.every, self.count = [nets], betas, every, 0
        self._places = [place.to(nets.device) for place in _matrices(specs)]
        batch, device = len(nets), nets.device
        self._mean = torch.zeros_like(nets)
        self._squares = [torch.zeros(batch, *place.shape, device=device) for place in self._places]
        # For each matrix L, R, U, V.
        self._sides = [
            [torch.zeros(batch, n, n, device=device) for n in (*place.shape, *place.shape)]
            for place in self._places
        ]

    @property
    def state(self) -> list[Tensor]:
        """All tensors that change beside the parameters; the first dimension is the image."""
        return [self._mean, *self._squares, *(tensor for side in self._sides for tensor in side)]

    @torch.no_grad()
    def step(self, rate: Tensor | float) -> None:
        """One update; `rate` is a number or (B,)."""
        self.count += 1
        first, second = self.betas
        nets = self.parameters[0]
        rate = torch.as_tensor(rate)  # a number stays on the CPU, as in `adam`
        rate = rate * math.sqrt(1 - second**self.count) / (1 - first**self.count)
        epsilon = 1e-8 * math.sqrt(1 - second**self.count)
        if self.kernels is not None:
            self._step_in_cpp(rate.expand(len(nets)).tolist(), epsilon)
            return
        self._mean.lerp_(nets.grad, 1 - first)
        change = torch.zeros_like(nets)
        for place, square, sides in zip(self._places, self._squares, self._sides):
            gradient, mean = (
                flat[:, place.flatten()].unflatten(1, place.shape) for flat in (nets.grad, self._mean)
            )
            if self.count == 1:
                self._first_bases(gradient, sides)
            *_, u, v = sides
            square.lerp_((u.mT @ gradient @ v).square(), 1 - second)
            scaled = (u.mT @ mean @ v) / (square.sqrt() + epsilon)
            change[:, place.flatten()] = (u @ scaled @ v.mT).flatten(1)
            for total, product in zip(sides, (gradient @ gradient.mT, gradient.mT @ gradient)):
                total.lerp_(product, 1 - second)
            self._move_bases(square, sides)
        nets.sub_(change * (rate[:, None] if rate.ndim else rate))

    def _step_in_cpp(self, rates: list[float], epsilon: float) -> None:
        first, second = self.betas
        nets = self.parameters[0]
        if self.count == 1:
            for place, sides in zip(self._places, self._sides):
                self._first_bases(nets.grad[:, place.flatten()].unflatten(1, place.shape), sides)
        flat = [tensor.detach().contiguous().numpy() for tensor in (nets, nets.grad, self._mean)]
        for value, gradient, mean, rate, matrices in zip(*flat, rates, self._matrices_in_cpp):
            native.soap(value, gradient, mean, matrices, (1 - first, 1 - second, rate, epsilon), self.kernels)
        for square, sides in zip(self._squares, self._sides):
            self._move_bases(square, sides)

    @functools.cached_property
    def _matrices_in_cpp(self) -> list[list[tuple[np.ndarray, ...]]]:
        """For each image and matrix its places and state, in the memory of the tensors."""
        return [
            [
                (place.int().numpy(), *(tensor[image].numpy() for tensor in (square, *sides)))
                for place, square, sides in zip(self._places, self._squares, self._sides)
            ]
            for image in range(len(self._mean))
        ]

    def _first_bases(self, gradient: Tensor, sides: list[Tensor]) -> None:
        for side, product in enumerate((gradient @ gradient.mT, gradient.mT @ gradient)):
            sides[side].copy_(product)
            sides[2 + side].copy_(torch.linalg.eigh(product)[1].flip(-1))

    def _move_bases(self, square: Tensor, sides: list[Tensor]) -> None:
        if self.count % self.every:
            return
        for side in range(2):
            total, basis = sides[side], sides[2 + side]
            size = (basis.mT @ total @ basis).diagonal(dim1=1, dim2=2)
            order = size.argsort(1, descending=True)
            basis.copy_(torch.linalg.qr(total @ basis.gather(2, order[:, None].expand_as(basis)))[0])
            along = order[:, :, None] if side == 0 else order[:, None]
            square.copy_(square.gather(1 + side, along.expand_as(square)))


def _matrices(specs: Sequence[ArraySpec]) -> list[Tensor]:
    """For each matrix the places of its elements in the flat nets, (outputs, inputs [+ 1])."""
    places, start = {}, 0
    for spec in specs:
        count = math.prod(spec.shape)
        places[spec.name] = torch.arange(start, start + count).reshape(spec.shape[0], -1)
        start += count
    found = []
    for spec in specs:
        bias = spec.name.replace(".weight", ".bias")
        if spec.is_bias:
            continue
        joined = [places[spec.name]] + ([places[bias]] if bias != spec.name and bias in places else [])
        found.append(torch.cat(joined, 1))
    return found
