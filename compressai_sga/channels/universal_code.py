# SPDX-License-Identifier: Apache-2.0
"""The entropy code of universally quantised numbers, for any one-dimensional distribution.

    code = UniversalCode(scipy.stats.laplace(scale=0.7).cdf, step=0.5)
    data = code.encode(quantise(y, u, 0.5), u)      # bytes; see `universal_quantisation`
    y_hat = dequantise(code.decode(data, u), u, 0.5)

Given the dither u, the integer K has P(K = k | u) = F((k + r_T(u) + 1/2) D) - F((k + r_T(u) - 1/2) D),
where F is the distribution function of y, D the step, and r_T as in `universal_quantisation`. Every number
gets a table for its own dither, so the expected length is H[K | u] = h(y + D U) - log2 D.

In:  F, vectorised over NumPy arrays; integers and dither as tensors of one shape.
Out: bytes (by `coding.ConstrictionANS`), integers, or bits. Probabilities are rounded to 20 bits: the
     last digit of another machine's libm changes one in some 10^9. Memory is 8 bytes for every number
     and integer of the support: cut long sequences into several strings.
Fails with ``ValueError`` for an integer outside the support and for a `cdf` that is not a distribution
function; with ``BitstreamError`` for bytes that are damaged or of another distribution or dither.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import constriction
import numpy as np
import torch
from torch import Tensor

from ..coding import ConstrictionANS
from ..errors import BitstreamError
from .universal_quantisation import conditional_mean

__all__ = ["UniversalCode"]

_family = constriction.stream.model.Categorical(perfect=False)
_BITS = 20
_TAIL = 1e-9


@dataclass(frozen=True)
class UniversalCode:
    """P(K | u) and its code, for one distribution, step and temperature.

    Args:
        cdf: distribution function of y, from and to float64 arrays.
        step: D > 0 of the quantiser, one number: several steps are several codes.
        temperature: of soft rounding, as in `universal_quantisation.quantise`.
        support: the smallest and the largest integer that can be coded; by default those between which
            all but 2e-9 of the probability lies, and three more on each side.

    Raises:
        ValueError: a step that is not positive, or a `cdf` that does not rise from 0 to 1.
    """

    cdf: Callable[[np.ndarray], np.ndarray]
    step: float = 1.0
    temperature: float = math.inf
    support: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.step, int | float) or not self.step > 0:
            raise ValueError(f"step is {self.step!r}; it must be a positive number")
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be at least 0 (hard)")
        if self.support is None:
            object.__setattr__(self, "support", self._find_support())
        low, high = self.support
        if not low <= high:
            raise ValueError(f"support is {self.support}; the first integer must not exceed the last")

    def bits(self, k: Tensor, u: Tensor) -> Tensor:
        """-log2 P(K = k | u), float64, shape of k."""
        rest = self._rest(u)
        centre = k.detach().cpu().double().numpy().ravel() + rest
        p = self._mass(centre - 0.5, centre + 0.5)
        return torch.from_numpy(-np.log2(np.maximum(p, 2.0**-_BITS))).reshape(k.shape)

    def encode(self, k: Tensor, u: Tensor) -> bytes:
        """The string of integers k given the dither u.

        Raises:
            ValueError: shapes differ, or an integer is outside of the support.
        """
        if k.shape != u.shape:
            raise ValueError(f"k has the shape {tuple(k.shape)}, u {tuple(u.shape)}; they must agree")
        if not bool((k == k.round()).all() and torch.isfinite(u).all()):
            raise ValueError("k holds non-integers, or u is not finite; take k from `quantise` with this u")
        low, high = self.support
        if k.numel() and not (low <= int(k.min()) and int(k.max()) <= high):
            raise ValueError(
                f"integers span {int(k.min())} to {int(k.max())}, the support {low} to {high}; name a "
                "wider `support` on both sides"
            )
        values = (k.detach().cpu().numpy().ravel() - low).astype(np.int32)
        return ConstrictionANS().encode_each(values, _family, self._table(u))

    def decode(self, data: bytes, u: Tensor) -> Tensor:
        """The integers of a string, float64, shape of u.

        Raises:
            BitstreamError: not a string that `encode` makes for this distribution and dither.
        """
        decoder = ConstrictionANS().decoder(data)
        values = decoder.decode_each(_family, self._table(u)) if u.numel() else np.zeros(0, np.int32)
        decoder.finish()
        if len(values) != u.numel():
            raise BitstreamError(
                f"the string holds {len(values)} integers, the dither {u.numel()}; decode with its own dither"
            )
        return torch.from_numpy(values.astype(np.float64) + self.support[0]).reshape(u.shape)

    def _rest(self, u: Tensor) -> np.ndarray:
        return conditional_mean(u.detach().cpu().double(), self.temperature).numpy().ravel()

    def _mass(self, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        p = self.cdf(upper * self.step) - self.cdf(lower * self.step)
        if not (p >= -1e-12).all():
            raise ValueError("cdf falls somewhere, or is NaN; it must be a distribution function")
        return np.maximum(p, 0.0)

    def _table(self, u: Tensor) -> np.ndarray:
        """Probabilities in units of 2^-20, shape (n, support), each at least one unit."""
        low, high = self.support
        edges = np.arange(low, high + 2) - 0.5 + self._rest(u)[:, None]
        p = np.diff(self.cdf(edges * self.step), axis=1)
        return np.maximum(np.round(p * 2.0**_BITS), 1.0)

    def _find_support(self) -> tuple[int, int]:
        """The integers between the quantiles of 1e-9 and 1 - 1e-9, and three more on each side."""
        far = 1
        while not (self.cdf(-far * self.step) <= _TAIL and self.cdf(far * self.step) >= 1 - _TAIL):
            far *= 2
            if far > 1 << 20:
                raise ValueError(
                    f"cdf is {float(self.cdf(-far * self.step))} at {-far * self.step:g} and "
                    f"{float(self.cdf(far * self.step))} at {far * self.step:g}, not 0 and 1: it is not a "
                    "distribution function, or the step is too small for it; name the `support`"
                )
        points = np.arange(-far, far + 1)
        mass = self.cdf(points * self.step)
        return int(points[mass > _TAIL][0]) - 3, int(points[mass < 1 - _TAIL][-1]) + 3
