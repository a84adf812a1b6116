# SPDX-License-Identifier: Apache-2.0
"""Autoregressive latents coded front by front: all pixels that do not depend on each other at once.

With a masked k x k context, pixel (i, j) sees the rows above up to column j + k // 2 and its own row up to
column j - 1. With slope s = k // 2 + 1, every pixel that it sees has a smaller s i + j. So all pixels with
the same s i + j form a front (a wavefront), which is computed as one batch: about s H + W fronts instead of
H W pixels.

    for each front:  context = taps . W + b;  (scales, means) = entropy_parameters(params, context)
                     symbols <- coder;        y_hat = symbols + means

Encoder and decoder run `_Scan.parameters` on the same inputs in the same shapes, one image at a time,
so on one machine their floats are equal to the last bit. All of it is float64. Another machine or thread
count may sum in another order, but that changes the floats by about 1e-15 only, enough to change an index in
one image of millions. (In float32, in most images some scale moves across a boundary of the table.) The
input `params`, from the hyperprior's network, is float32; keeping it the same is up to the caller.

Symbols are coded in the order of the fronts, so these strings differ from those of stock CompressAI. The
images are the same, except at ties y - mean = 1/2, which stock's float32 decides by its last bit.

In:  y (1, C, H, W), params (1, P, H, W), the modules of CompressAI's model, and `Rounding`, which tells
     how symbols and y_hat are related. Out: string and y_hat, or y_hat.
Fails with ``InputError`` on latents that are not finite, ``BitstreamError`` on a string that was not made for
these parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BitstreamError
from ..inputs import check_latents
from .entropy_models import coder_of, symbol_indexes, tables_of

__all__ = ["MEANS", "Rounding", "VariableRounding", "scan_compress", "scan_decompress"]

# An exhausted string gives the first symbol of every table, six standard deviations below the mean, from
# there on: so many of them are no latent, and a short string for a huge image need not be read to its end.
MOST_IDLE = 1024


@dataclass(frozen=True)
class Rounding:
    """Symbols are round(y - mean), y_hat is symbol + mean: mbt2018, cheng2020.

    Args:
        scale: a factor on the scales that symbols are coded with; None is 1.
    """

    scale: Tensor | None = None

    def coded_scales(self, scales: Tensor) -> Tensor:
        """The scales of the symbols."""
        return scales if self.scale is None else scales * self.scale

    def symbols(self, y: Tensor, means: Tensor) -> Tensor:
        """What is coded, int32, shape of y."""
        return _rounded(y - means)

    def y_hat(self, symbols: Tensor, scales: Tensor, means: Tensor) -> Tensor:
        """The reconstruction that both sides use as context, (n, C), float64."""
        return symbols.to(means.dtype) + means


def _rounded(v: Tensor) -> Tensor:
    check_latents(v)
    return torch.round(v).int()


MEANS = Rounding()


@dataclass(frozen=True)
class VariableRounding(Rounding):
    """The variable-rate model: symbols are round((y - mean) scale), y_hat has learned offsets.

    Kamisli, Racape & Choi, "Variable-rate learned image compression with multi-objective optimization
    and quantization-reconstruction offsets", 2024; as `JointAutoregressiveHierarchicalPriorsVbr`.

    Args:
        scale: 1 / step, a float64 tensor.
        rescale: the step, a float64 tensor.
        offsets: standard deviation and gain (..., 2) to the offset (..., 1); None is without offsets.
        lower_bound: of the scales.
    """

    rescale: Tensor | None = None
    offsets: Callable[[Tensor], Tensor] | None = None
    lower_bound: Callable[[Tensor], Tensor] | None = None

    def symbols(self, y: Tensor, means: Tensor) -> Tensor:
        return _rounded((y - means) * self.scale)

    def y_hat(self, symbols: Tensor, scales: Tensor, means: Tensor) -> Tensor:
        values = symbols.to(means.dtype)
        if self.offsets is None:
            return values * self.rescale + means
        deviation = self.lower_bound(scales * self.scale).unsqueeze(-1)
        pairs = torch.cat((deviation, self.scale.detach().expand(deviation.shape)), dim=-1)
        # Zero is reconstructed as zero.
        shrunk = torch.where(symbols == 0, 0.0, -self.offsets(pairs).squeeze(-1))
        return torch.sign(values) * (values.abs() + shrunk) * self.rescale + means


@torch.no_grad()
def scan_compress(
    y: Tensor,
    params: Tensor,
    conditional: nn.Module,
    entropy_parameters: nn.Module,
    context_prediction: nn.Conv2d,
    *,
    rounding: Rounding = MEANS,
    shift: Tensor | None = None,
    merge: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[bytes, Tensor]:
    """Code one latent.

    Args:
        y: (1, C, H, W).
        params: (1, P, H, W), what the hyperprior says.
        conditional: the GaussianConditional, with a coder of ours and tables.
        entropy_parameters: (n, P + Q, 1, 1) to (n, 2 C, 1, 1), scales and means.
        context_prediction: the masked convolution, C to Q channels.
        rounding: how symbols belong to y.
        shift: (Q,), added to the context.
        merge: of (params, context); None concatenates them.

    Returns:
        The string; y_hat (1, C, H, W).
    """
    scan = _Scan(params, y.size(1), entropy_parameters, context_prediction, shift, merge)
    source = y[0].double().permute(1, 2, 0).reshape(-1, y.size(1))
    chunks = []
    for front in scan.fronts():
        scales, means = scan.parameters(front)
        symbols = rounding.symbols(source[front.pixels], means)
        scan.put(front, rounding.y_hat(symbols, scales, means))
        indexes = symbol_indexes(conditional, rounding.coded_scales(scales))
        chunks.append((symbols.reshape(-1).cpu().numpy(), indexes))
    coder = coder_of(conditional)
    indexes = chunks[0][1] if chunks else np.zeros(0, np.int32)
    return coder.encode_chunks(chunks, tables_of(conditional, indexes)), scan.y_hat().to(y.dtype)


@torch.no_grad()
def scan_decompress(
    string: bytes,
    params: Tensor,
    conditional: nn.Module,
    entropy_parameters: nn.Module,
    context_prediction: nn.Conv2d,
    *,
    rounding: Rounding = MEANS,
    shift: Tensor | None = None,
    merge: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """y_hat (1, C, H, W) of a string of `scan_compress`; arguments as there.

    Raises:
        BitstreamError: the string was not made for these parameters.
    """
    channels = context_prediction.in_channels
    scan = _Scan(params, channels, entropy_parameters, context_prediction, shift, merge)
    decoder = coder_of(conditional).decoder(string)
    for front in scan.fronts():
        scales, means = scan.parameters(front)
        indexes = symbol_indexes(conditional, rounding.coded_scales(scales))
        read = decoder.decode(indexes, tables_of(conditional, indexes))
        symbols = torch.from_numpy(read).reshape(means.shape).to(means.device)
        scan.put(front, rounding.y_hat(symbols, scales, means))
        if decoder.idle > MOST_IDLE:
            raise BitstreamError(
                f"a string of {len(string)} bytes ends long before the last of its {scan.height} x "
                f"{scan.width} pixels: it is truncated, or the size is wrong; get it again"
            )
    decoder.finish()
    return scan.y_hat().to(params.dtype)


@dataclass(frozen=True)
class _Front:
    """Independent pixels: their positions in the latent and the padded latent, and their context's."""

    pixels: Tensor  # (n,)
    padded: Tensor  # (n,)
    taps: Tensor  # (n, taps)


class _Scan:
    """The state of one latent: y_hat so far, channels last, with a border of zeros."""

    def __init__(
        self,
        params: Tensor,
        channels: int,
        entropy_parameters: nn.Module,
        context_prediction: nn.Conv2d,
        shift: Tensor | None,
        merge: Callable[[Tensor, Tensor], Tensor] | None,
    ) -> None:
        self.height, self.width = params.shape[2:]
        conv = context_prediction
        self.pad_y, self.pad_x = conv.kernel_size[0] // 2, conv.kernel_size[1] // 2
        self.stride = self.width + 2 * self.pad_x
        size = self.stride * (self.height + 2 * self.pad_y)
        self.buffer = params.new_zeros(size, channels, dtype=torch.float64)
        masks = conv.mask.flatten(2).flatten(0, 1)
        used = masks.new_ones(1, len(masks)) @ masks
        seen = used[0].nonzero().flatten()  # the causal taps, in raster order
        rows, columns = seen // conv.kernel_size[1], seen % conv.kernel_size[1]
        self.reach = (rows - self.pad_y) * self.stride + columns - self.pad_x
        self.slope = self._slope(rows - self.pad_y, columns - self.pad_x)
        weight = (conv.weight * conv.mask).double().flatten(2)[:, :, seen]  # (Q, C, taps)
        self.weight = weight.permute(0, 2, 1).reshape(conv.out_channels, -1).contiguous()
        self.bias = weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.double()
        if shift is not None:
            self.bias = self.bias + shift.double().flatten()
        self.params = params[0].double().permute(1, 2, 0).reshape(self.height * self.width, -1)
        self.merge = merge
        self.layers = None if merge else _pointwise(entropy_parameters, self.params.size(1))
        if self.layers:  # the first layer's share of params needs no context: all pixels at once
            (weight, bias), *_ = self.layers
            self.first = F.linear(self.params, weight[:, : self.params.size(1)].contiguous(), bias)
            self.mix = weight[:, self.params.size(1) :].contiguous()
        else:
            self.entropy_parameters = copy.deepcopy(entropy_parameters).double()

    @staticmethod
    def _slope(rows: Tensor, columns: Tensor) -> int:
        """The least s with s row + column < 0 for every tap."""
        above = rows < 0
        if (rows > 0).any() or ((columns >= 0) & ~above).any():
            raise ValueError("the context's mask is not causal: a pixel sees itself or a later one")
        needed = torch.div(columns[above], -rows[above], rounding_mode="floor") + 1
        return max(1, int(needed.max())) if len(needed) else 1

    def fronts(self) -> Iterator[_Front]:
        """The fronts in coding order."""
        device = self.buffer.device
        i, j = torch.meshgrid(
            torch.arange(self.height, device=device), torch.arange(self.width, device=device), indexing="ij"
        )
        when = (self.slope * i + j).flatten()
        pixels = torch.argsort(when, stable=True)
        padded = ((i + self.pad_y) * self.stride + j + self.pad_x).flatten()[pixels]
        taps = padded[:, None] + self.reach
        start = 0
        for count in torch.bincount(when).tolist():
            part = slice(start, start + count)
            start += count
            if count:
                yield _Front(pixels[part], padded[part], taps[part])

    def parameters(self, front: _Front) -> tuple[Tensor, Tensor]:
        """Scales and means of the front's pixels, (n, C) each, float64."""
        n = len(front.pixels)
        # Gathered into fresh memory: the same alignment, hence the same bits, on both sides.
        context = F.linear(self.buffer[front.taps.flatten()].view(n, -1), self.weight, self.bias)
        if self.layers:
            out = self.first[front.pixels] + F.linear(context, self.mix)
            for layer in self.layers[1:]:
                out = layer(out) if callable(layer) else F.linear(out, *layer)
        else:
            params, context = self.params[front.pixels][..., None, None], context[..., None, None]
            merged = self.merge(params, context) if self.merge else torch.cat((params, context), 1)
            out = self.entropy_parameters(merged)[..., 0, 0]
        scales, means = out.chunk(2, 1)
        return scales, means

    def put(self, front: _Front, y_hat: Tensor) -> None:
        self.buffer[front.padded] = y_hat

    def y_hat(self) -> Tensor:
        """(1, C, H, W), float64."""
        grid = self.buffer.view(self.height + 2 * self.pad_y, self.stride, -1)
        inner = grid[self.pad_y : self.pad_y + self.height, self.pad_x : self.pad_x + self.width]
        return inner.permute(2, 0, 1)[None].contiguous()


def _pointwise(network: nn.Module, first: int) -> list | None:
    """The network as (weight, bias) and activations; None where it has other layers than 1x1 convolutions."""
    if not isinstance(network, nn.Sequential) or not len(network):
        return None
    layers: list = []
    for module in network:
        if (
            isinstance(module, nn.Conv2d)
            and module.kernel_size == module.stride == (1, 1)
            and (module.padding, module.groups) == ((0, 0), 1)
        ):
            bias = None if module.bias is None else module.bias.double()
            layers.append((module.weight.double().flatten(1), bias))
        elif isinstance(module, (nn.LeakyReLU, nn.ReLU)):
            layers.append(module)
        else:
            return None
    starts = isinstance(network[0], nn.Conv2d) and network[0].in_channels > first
    return layers if starts else None
