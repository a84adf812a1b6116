# SPDX-License-Identifier: Apache-2.0
"""A small explicit probability model of 8-bit images with exact code lengths, and a code that fits it.

A lossy codec gives no probability of an image; a lossless predictor does. The planes are coded in the order
G, R, B, each from the top left. A value x is predicted from its earlier neighbours in a window of 5 x 5, and
from all neighbours within 3 x 3 in the earlier planes; W is the left neighbour:

    mu = W + sum_i a_i (neighbour_i - W of its plane)             the prediction
    m  = sum_j b_j |differences and errors around x|_j            the error that is expected
    P(x) = (1 - e) [F((x + 1/2 - mu) / s) - F((x - 1/2 - mu) / s)] + e / 256     F: 0 below 0, 1 above 255

F is a mixture of two logistic distributions; its scale s and form depend on the context, the half octave of
m. The product of P over all values sums to 1 over all images. CALIC (Wu and Memon 1997) is of this kind.

`PixelModel.fit` has a closed form: least squares, then a choice of s and F. It rounds the parameters
so that they take few bits: half-precision weights, 8 bits a context. `FittedPixelModel` is the two-part
code of minimum description length (Rissanen 1978): an image's parameters, then the image under them.

In:  images (B, 3, H, W), uint8. Out: bits, (B,), float64.
Memory: some 0.15 kB a pixel of the largest image.
Fails with ``ShapeError`` for other images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ShapeError

__all__ = ["FittedPixelModel", "PixelModel", "Plane", "check_images"]

_ORDER = (1, 0, 2)  # G first: it says most about the others
_REACH = 2
_W, _N, _NW, _NE, _WW, _NN = (0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0)  # (row, column)
_ABOVE = tuple(product(range(-_REACH, 0), range(-_REACH, _REACH + 1)))
_OWN = (_W, *((0, -j) for j in range(2, _REACH + 1)), *_ABOVE)
_EARLIER = (_W, *(place for place in product((-1, 0, 1), repeat=2) if place != _W))
_AROUND = ((0, 0), (0, -1), (-1, 0), (0, 1), (1, 0))  # errors of an earlier plane
_CONTEXTS = 16  # half octaves of the expected error, from 2^-2.5 up
# What a context chooses from: scale of the narrow logistic; ratio of the wide one to it, and its weight.
_CHOICES = tuple(
    (2 ** (k / 3), ratio, weight)
    for k, (ratio, weight) in product(range(-15, 19), ((1.0, 0.0), (2.0, 0.3), (3.0, 0.2), (5.0, 0.1)))
)
_CHOICE_BITS = (len(_CHOICES) - 1).bit_length()
_WEIGHT_BITS = 16
_UNIFORM = 2.0**-12  # the e above: no value costs more than 20 bits
_LEAST_ERROR = 2.0**-4
_SAMPLE = 1024  # values a context is chosen by
_AT_ONCE_PX = 2**19
_FIT_PX = 2**18
_BAND_ROWS = 64


@dataclass(frozen=True)
class Plane:
    """Parameters of one colour plane.

    Args:
        predictor: the weights a: 11 of its own neighbours, 8 of each earlier plane.
        magnitude: the weights b: 5 differences, 4 errors, 5 errors of each earlier plane, a constant.
        choices: of each context, an index into the scales and mixtures.
    """

    predictor: tuple[float, ...]
    magnitude: tuple[float, ...]
    choices: tuple[int, ...]


@dataclass(frozen=True)
class PixelModel:
    """A probability model of images; see the head of the file.

    Args:
        planes: parameters of G, R and B.
        levels: values run from 0 to levels - 1.
    """

    planes: tuple[Plane, Plane, Plane]
    levels: int = 256

    @property
    def description_bits(self) -> int:
        """Bits that code the parameters."""
        weights = sum(len(plane.predictor) + len(plane.magnitude) for plane in self.planes)
        return _WEIGHT_BITS * weights + _CHOICE_BITS * _CONTEXTS * len(self.planes)

    @torch.no_grad()
    def bits(self, x: Tensor) -> Tensor:
        """-log2 P(x) of each image, (B,).

        Args:
            x: (B, 3, H, W), uint8.
        """
        check_images(x)
        chunks = x.split(max(1, _AT_ONCE_PX // (x.size(2) * x.size(3))))
        return torch.cat([self._bits(_planes(chunk)) for chunk in chunks])

    def joint_bits(self, x: Tensor) -> Tensor:
        """-log2 of the product of the images' probabilities, ()."""
        return self.bits(x).sum()

    def _bits(self, planes: list[Tensor]) -> Tensor:
        total = torch.zeros(len(planes[0]), dtype=torch.float64)
        errors: list[Tensor] = []
        for index, plane in enumerate(self.planes):
            values = planes[index]
            mean = _mean(plane.predictor, planes[: index + 1], self.levels)
            errors.append(values - mean)
            spread = _spread(plane.magnitude, _magnitudes(values, errors))
            choice = torch.tensor(plane.choices)[_context(spread)]
            columns = (t.flatten(1).split(_AT_ONCE_PX // 4, 1) for t in (values, mean, choice))
            for part in zip(*columns):
                total += _value_bits(*part, self.levels).sum(1)
        return total

    @classmethod
    @torch.no_grad()
    def fit(cls, images: Sequence[Tensor], levels: int = 256) -> PixelModel:
        """The model of this family that codes `images` in few bits.

        Args:
            images: tensors (B, 3, H, W), uint8, of any sizes.
            levels: as in the class.
        """
        for x in images:
            check_images(x)
        views = [_planes(x) for x in images]
        errors: list[list[Tensor]] = [[] for _ in views]
        fitted = tuple(_fit_plane(views, errors, index, levels) for index in range(3))
        return cls(fitted, levels)


class FittedPixelModel:
    """The two-part code: the parameters that fit the image, then the image under them.

    A batch that is coded together shares one set of parameters. For images above 2^18 px the parameters are
    fitted to evenly spaced bands of rows only, to save time and memory; the code is valid with any
    parameters.
    """

    def bits(self, x: Tensor) -> Tensor:
        """Code lengths, (B,), of the images (B, 3, H, W), uint8, each coded alone."""
        return torch.stack([self.joint_bits(image[None]) for image in x])

    def joint_bits(self, x: Tensor) -> Tensor:
        """Code length, (), of all images coded together."""
        check_images(x)
        every = -(-x.numel() // (3 * _FIT_PX))
        bands = [band for image in x.split(1) for band in image.split(_BAND_ROWS, 2)]
        model = PixelModel.fit([x] if every == 1 else bands[::every])
        return model.description_bits + model.joint_bits(x)


def check_images(x: Tensor) -> None:
    """Raise ShapeError unless x is (B, 3, H, W), uint8."""
    if x.ndim != 4 or x.size(1) != 3 or x.numel() == 0 or x.dtype != torch.uint8:
        raise ShapeError(
            f"the images are {tuple(x.shape)} of {x.dtype}; they must be (B, 3, H, W) of torch.uint8: "
            "round values of [0, 1] with (x * 255).round().to(torch.uint8)"
        )


def _planes(x: Tensor) -> list[Tensor]:
    """G, R and B, each (B, H, W), float32."""
    return [x[:, channel].cpu().float() for channel in _ORDER]


def _causal(plane: Tensor, offsets: Sequence[tuple[int, int]], unknown: float) -> list[Tensor]:
    """The plane's values at the offsets, (B, H, W) each.

    Outside the image, a value that is already known is used: left and right of a row the nearest one above,
    above the first row one so far to the left that even the rightmost neighbour may use it.
    """
    _, height, width = plane.shape
    r = _REACH
    padded = F.pad(plane, (r, r, r, 0), value=unknown)
    padded[:, r + 1 :, :r] = plane[:, :-1, :1]
    padded[:, r:, r + width :] = plane[:, :, -1:]
    padded[:, :r, 2 * r + 1 :] = plane[:, :1, : width - 1]
    return [padded[:, r + i : r + i + height, r + j : r + j + width] for i, j in offsets]


def _anywhere(plane: Tensor, offsets: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The same for a plane that is known everywhere; edges are repeated."""
    _, height, width = plane.shape
    padded = F.pad(plane[None], (1, 1, 1, 1), mode="replicate")[0]
    return [padded[:, 1 + i : 1 + i + height, 1 + j : 1 + j + width] for i, j in offsets]


def _west(plane: Tensor, levels: int) -> Tensor:
    return _causal(plane, [_W], levels / 2)[0]


def _differences(planes: list[Tensor], levels: int) -> Iterator[Tensor]:
    """What the last plane's values are predicted from, (B, H, W) each."""
    *earlier, plane = planes
    groups = [_causal(plane, _OWN, levels / 2)] + [_anywhere(other, _EARLIER) for other in earlier]
    return (value - first for first, *others in groups for value in others)


def _weighted(weights: Sequence[float], terms: Iterator[Tensor]) -> Tensor:
    """Their sum, term by term: all terms at once would be a hundred bytes a pixel."""
    return sum((weight * term for weight, term in zip(weights, terms)), torch.zeros(()))


def _mean(predictor: Sequence[float], planes: list[Tensor], levels: int) -> Tensor:
    """mu of the last plane, (B, H, W)."""
    change = _weighted(predictor, _differences(planes, levels))
    return (_west(planes[-1], levels) + change).clamp(0, levels - 1)


def _magnitudes(plane: Tensor, errors: list[Tensor]) -> Iterator[Tensor]:
    """What its errors' size is expected from, (B, H, W) each; `errors` of all planes up to this one."""
    w, n, nw, ne, ww, nn = _causal(plane, (_W, _N, _NW, _NE, _WW, _NN), 0.0)
    yield from (pair.abs() for pair in (w - nw, n - nw, ne - n, w - ww, n - nn))
    yield from (error.abs() for error in _causal(errors[-1], (_W, _N, _NW, _NE), 0.0))
    for other in errors[:-1]:
        yield from (error.abs() for error in _anywhere(other, _AROUND))
    yield torch.ones_like(w)


def _spread(magnitude: Sequence[float], magnitudes: Iterator[Tensor]) -> Tensor:
    """m, (B, H, W)."""
    return _weighted(magnitude, magnitudes).clamp_min(_LEAST_ERROR)


def _context(spread: Tensor) -> Tensor:
    return (2 * spread.log2() + 5).floor().long().clamp(0, _CONTEXTS - 1)


def _value_bits(values: Tensor, mean: Tensor, choice: Tensor, levels: int) -> Tensor:
    """-log2 P(x); `choice` indexes _CHOICES; all broadcast."""
    scale, ratio, weight = torch.tensor(_CHOICES, dtype=torch.float64).T
    distance = values.double() - mean.double()
    upper = torch.where(values == levels - 1, torch.inf, distance + 0.5)
    lower = torch.where(values == 0, -torch.inf, distance - 0.5)
    # F(u) - F(l) = F(-l) - F(-u); of the two, the one without the difference of two numbers near 1.
    right = distance > 0
    upper, lower = torch.where(right, -lower, upper), torch.where(right, -upper, lower)
    probability = torch.zeros((), dtype=torch.float64)
    for share, width in ((1 - weight, scale), (weight, scale * ratio)):
        width = width[choice]
        probability = probability + share[choice] * ((upper / width).sigmoid() - (lower / width).sigmoid())
    return -((1 - _UNIFORM) * probability + _UNIFORM / levels).log2()


def _fit_plane(views: list[list[Tensor]], errors: list[list[Tensor]], index: int, levels: int) -> Plane:
    """Parameters of plane `index`; appends its errors to those of each view."""
    known = [planes[: index + 1] for planes in views]
    spreads = [torch.ones(1)] * len(views)
    for _ in range(2):  # the second time with errors weighted by their expected size
        predictor = _least_squares(
            (torch.stack(list(_differences(planes, levels))), planes[-1] - _west(planes[-1], levels), spread)
            for planes, spread in zip(known, spreads)
        )
        found = [planes[-1] - _mean(predictor, planes, levels) for planes in known]
        magnitudes = [
            torch.stack(list(_magnitudes(planes[-1], [*before, new])))
            for planes, before, new in zip(known, errors, found)
        ]
        spreads = [m.mean(0) for m in magnitudes]
        for _ in range(2):
            magnitude = _least_squares((m, e.abs(), s) for m, e, s in zip(magnitudes, found, spreads))
            spreads = [_spread(magnitude, iter(m)) for m in magnitudes]
    for view, new in zip(errors, found):
        view.append(new)
    values = torch.cat([planes[-1].flatten() for planes in known])
    means = values - torch.cat([e.flatten() for e in found])
    contexts = _context(torch.cat([s.flatten() for s in spreads]))
    choices = []
    for context in range(_CONTEXTS):
        places = (contexts == context).nonzero()[:, 0]
        places = places[:: max(1, len(places) // _SAMPLE)]
        candidates = torch.arange(len(_CHOICES))[:, None]
        costs = _value_bits(values[places], means[places], candidates, levels).sum(1)
        choices.append(int(costs.argmin()))
    for context in range(1, _CONTEXTS):  # without values of its own: the choice of a lower one
        if not (contexts == context).any():
            choices[context] = choices[context - 1]
    return Plane(predictor, magnitude, tuple(choices))


def _least_squares(systems: Iterable[tuple[Tensor, Tensor, Tensor]]) -> tuple[float, ...]:
    """Weights w of least sum ((y - w X) / (s + 1/2))^2 over all (X, y, s), rounded to half precision."""
    gram, moment = torch.zeros(()), torch.zeros(())
    for inputs, outputs, spread in systems:
        inputs, outputs = inputs.flatten(1).double(), outputs.flatten().double()
        weighted = inputs / (spread.flatten().double() + 0.5).square()
        gram, moment = gram + weighted @ inputs.T, moment + weighted @ outputs
    ridge = 1e-6 * gram.trace() / len(gram) + 1e-3
    solution = torch.linalg.solve(gram + ridge * torch.eye(len(gram)), moment)
    return tuple(solution.clamp(-1e3, 1e3).half().tolist())
