# SPDX-License-Identifier: Apache-2.0
"""Any CompressAI model with universal quantisation instead of rounding.

Agustsson & Theis, "Universally quantized neural compression", 2020: where the codec quantises with the
shared dither of `channels.universal_quantisation`, its reconstruction has exactly the distribution of
training with uniform noise, and the loss at test time is the training loss. Soft rounding, annealed in
training (`anneal`), removes the loss of universal quantisation against rounding.

    UniversalMeanScale = universal(compressai.models.MeanScaleHyperprior)
    net = UniversalMeanScale(N=64, M=96)          # trains, updates, compresses like any other

In:  a model class whose latents go through `EntropyBottleneck` and `GaussianConditional` modules.
Out: a subclass whose modules of these two kinds are `UniversalBottleneck`, `UniversalGaussian`. Their
     parameters have the stock names, so that a stock checkpoint can be loaded and trained on; the
     temperature is a buffer, saved with the weights.

The factorised prior is coded with integer tables, one for each channel and each of 64 levels of its
dither, by the model's entropy coder (`update` makes the tables). The Gaussian is coded with its exact mean
and scale, always by constriction. No seed is sent: the dither is a constant of the class, the same for every
image and different for each entropy model.

Fails with ``UnsupportedModelError`` for autoregressive, checkerboard and variable-rate models, which
round outside of these modules.
"""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

import numpy as np
import torch
from compressai.entropy_models import EntropyBottleneck, EntropyModel, GaussianConditional
from compressai.models import CompressionModel, FactorizedPrior, MeanScaleHyperprior, ScaleHyperprior
from torch import Tensor, nn

from ..channels.universal_quantisation import conditional_mean, dither, noisy, quantise
from ..coding.gaussians import decode_gaussians, encode_gaussians
from ..errors import UnsupportedModelError
from ..inputs import check_images, check_latents
from ..precision import full_precision

__all__ = [
    "ARCHITECTURES",
    "UniversalBottleneck",
    "UniversalGaussian",
    "anneal",
    "universal",
]

DITHER_SEED = 0x5EED
LEVELS = 64
"""Values of the factorised prior's dither; the Gaussian's is continuous."""


class _Universal(EntropyModel):
    """The common part of both kinds of module: temperature, dither, and the noise in training."""

    dither_block = 0  # which of the model's dithers; `universal` numbers its entropy models
    temperature: Tensor

    UNREFINABLE: ClassVar[str] = (
        "quantises with dither, and refinement works on rounded latents; refine the stock model of this "
        "architecture"
    )

    def _start(self) -> None:
        self.register_buffer("temperature", torch.tensor(math.inf))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A stock checkpoint has no temperature.
        state_dict.setdefault(prefix + "temperature", self.temperature)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def quantize(self, inputs: Tensor, mode: str, means: Tensor | None = None) -> Tensor:
        """The stock method, for the integers that this module gives to the coder; it rounds nothing else.

        Raises:
            UnsupportedModelError: a model's own code wants its latents rounded.
        """
        if mode != "symbols":
            raise UnsupportedModelError(
                f"quantize(mode={mode!r}) would round, and universal quantisation replaces rounding; "
                "use what the module's forward or decompress returns"
            )
        return super().quantize(inputs, mode, means)

    def _integers(self, v: Tensor, u: Tensor) -> Tensor:
        """What is sent for centred latents v with the dither u.

        Raises:
            InputError: a latent has no symbol, such as NaN.
        """
        check_latents(v)
        return quantise(v, u.to(v.dtype), temperature=float(self.temperature))

    def _dither(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Shared noise of one image, float64, shape (C, h, w); the same for every image."""
        return dither(DITHER_SEED, tuple(shape), block=self.dither_block, device=device)

    def _through_channel(self, v: Tensor, training: bool) -> Tensor:
        """What the decoder gets for centred latents v, shape (B, C, h, w)."""
        temperature = float(self.temperature)
        if training:
            return noisy(v, torch.rand_like(v) - 0.5, temperature=temperature)
        u = self._dither(v.shape[1:], v.device)
        return quantise(v, u.to(v.dtype), temperature=temperature) + self._rest(u).to(v.dtype)

    def _rest(self, u: Tensor) -> Tensor:
        """r_T(u), which the decoder adds to the integers, rounded to a grid to remove libm's last bit."""
        grid = 2.0**24
        return torch.round(conditional_mean(u, float(self.temperature)) * grid) / grid


class UniversalBottleneck(_Universal, EntropyBottleneck):
    """`EntropyBottleneck` whose latents are universally quantised; parameters are stock's.

    Its coding tables have one row for each channel and level of the dither, row C * LEVELS + level.
    """

    @classmethod
    def like(cls, module: EntropyBottleneck) -> UniversalBottleneck:
        """A universal module with the parameters of a stock one."""
        new = cls(
            module.channels,
            tail_mass=module.tail_mass,
            init_scale=module.init_scale,
            filters=module.filters,
            entropy_coder=module.entropy_coder.name,
        )
        new._start()
        new.load_state_dict(module.state_dict())
        return new

    def forward(self, x: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        training = self.training if training is None else training
        with torch.autocast(x.device.type, enabled=False):
            medians = self._medians(x.ndim - 2)
            x_hat = self._through_channel(x.to(medians.dtype) - medians, training) + medians
            likelihood, _, _ = self._likelihood(x_hat.transpose(0, 1).flatten(1)[:, None])
            if self.use_likelihood_bound:
                likelihood = self.likelihood_lower_bound(likelihood)
        swapped = (x.shape[1], x.shape[0], *x.shape[2:])
        return x_hat.to(x.dtype), likelihood.reshape(swapped).transpose(0, 1)

    def update(self, force: bool = False, update_quantiles: bool = False) -> bool:
        """Makes the integer tables at the current temperature; see `EntropyBottleneck.update`."""
        if self._offset.numel() > 0 and not force:
            return False
        if update_quantiles:
            self._update_quantiles()
        with torch.no_grad():
            low, medians, high = self.quantiles[:, 0].unbind(1)
            below = torch.ceil(medians - low).int().clamp_min(0) + 1
            above = torch.ceil(high - medians).int().clamp_min(0) + 1
            lengths = below + above + 1
            k = torch.arange(int(lengths.max()), device=lengths.device) - below[:, None]
            rest = self._rest(_levels(lengths.device))
            points = (medians[:, None, None] + k[:, None] + rest[:, None]).flatten(1)[:, None]
            pmf, lower, upper = (
                t.reshape(self.channels * LEVELS, -1) for t in self._likelihood(points.to(medians.dtype))
            )
            lengths = lengths.repeat_interleave(LEVELS)
            last = (lengths - 1)[:, None].long()
            tail = torch.sigmoid(lower[:, :1]) + torch.sigmoid(-upper.gather(1, last))
            self._quantized_cdf = self._pmf_to_cdf(pmf, tail, lengths, int(lengths.max()))
            self._offset = (-below).repeat_interleave(LEVELS)
            self._cdf_length = lengths + 2
        return True

    def compress(self, x: Tensor) -> list[bytes]:
        rows, u = self._rows(x.shape[1:], x.device)
        k = self._integers(x - self._medians(x.ndim - 2).detach(), u)
        # EntropyModel's, or what `coding.set_coder` put before it.
        return super(EntropyBottleneck, self).compress(k, rows.expand(x.shape))

    def decompress(self, strings: list[bytes], size: tuple[int, ...]) -> Tensor:
        rows, u = self._rows(torch.Size((self.channels, *size)), self.quantiles.device)
        medians = self._medians(len(size)).detach()
        rows = rows.expand(len(strings), *rows.shape)
        k = super(EntropyBottleneck, self).decompress(strings, rows, medians.dtype)
        return k + self._rest(u).to(k.dtype) + medians

    def _medians(self, dimensions: int) -> Tensor:
        return self.quantiles[:, 0, 1].reshape(-1, *(1,) * dimensions)

    def _level_indexes(self, shape: torch.Size, device: torch.device) -> Tensor:
        return ((super()._dither(shape, device) + 0.5) * LEVELS).floor().long()

    def _dither(self, shape: torch.Size, device: torch.device) -> Tensor:
        return _levels(device)[self._level_indexes(shape, device)]

    def _rows(self, shape: torch.Size, device: torch.device) -> tuple[Tensor, Tensor]:
        """Row of the coding table and dither of every element of an image's latent."""
        if self._offset.numel() != self.channels * LEVELS:
            raise ValueError(
                f"the coding tables have {self._offset.numel()} rows, not {self.channels} channels "
                f"x {LEVELS} levels of dither; call update(force=True)"
            )
        channel = torch.arange(self.channels, device=device).reshape(-1, *(1,) * (len(shape) - 1))
        index = self._level_indexes(shape, device)
        return (channel * LEVELS + index).int(), _levels(device)[index]


def _levels(device: torch.device) -> Tensor:
    """The centres of LEVELS equal parts of [-1/2, 1/2], float64."""
    return (torch.arange(LEVELS, device=device, dtype=torch.float64) + 0.5) / LEVELS - 0.5


class UniversalGaussian(_Universal, GaussianConditional):
    """`GaussianConditional` whose latents are universally quantised around their means.

    The "indexes" that stock models pass from `build_indexes` to `compress` are the scales themselves.
    """

    @classmethod
    def like(cls, module: GaussianConditional) -> UniversalGaussian:
        """A universal module with the settings of a stock one."""
        new = cls(
            None,
            scale_bound=float(module.scale_bound),
            tail_mass=module.tail_mass,
            entropy_coder=module.entropy_coder.name,
        )
        new._start()
        return new

    def forward(
        self,
        inputs: Tensor,
        scales: Tensor,
        means: Tensor | None = None,
        training: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        training = self.training if training is None else training
        with torch.autocast(inputs.device.type, enabled=False):
            dtype = torch.promote_types(inputs.dtype, torch.float32)
            v = inputs.to(dtype) if means is None else inputs.to(dtype) - means.to(dtype)
            v_hat = self._through_channel(v, training)
            likelihood = self._likelihood(v_hat, scales.to(dtype))
            if self.use_likelihood_bound:
                likelihood = self.likelihood_lower_bound(likelihood)
            y_hat = v_hat if means is None else v_hat + means.to(dtype)
        return y_hat.to(inputs.dtype), likelihood

    def update_scale_table(self, scale_table: Any, force: bool = False) -> bool:
        """Nothing to do: no table of scales is used."""
        return False

    def build_indexes(self, scales: Tensor) -> Tensor:
        """The scales used for coding, bounded from below."""
        return self.lower_bound_scale(scales)

    def compress(self, inputs: Tensor, indexes: Tensor, means: Tensor | None = None) -> list[bytes]:
        if inputs.shape != indexes.shape or inputs.ndim < 2:
            raise ValueError(
                f"inputs {tuple(inputs.shape)}, indexes {tuple(indexes.shape)}: expected the same (B, C, ...)"
            )
        dtype = torch.promote_types(inputs.dtype, torch.float32)
        v = inputs.to(dtype) if means is None else inputs.to(dtype) - means.to(dtype)
        u = self._dither(v.shape[1:], v.device)
        k, centre = self._integers(v, u), -_flat(self._rest(u), np.float64)
        return [
            encode_gaussians(_flat(k_i, np.int32), centre, _flat(scales, np.float64))
            for k_i, scales in zip(k, indexes, strict=True)
        ]

    def decompress(
        self,
        strings: list[bytes],
        indexes: Tensor,
        dtype: torch.dtype = torch.float,
        means: Tensor | None = None,
    ) -> Tensor:
        if len(strings) != len(indexes) or indexes.ndim < 2:
            raise ValueError(
                f"{len(strings)} strings, indexes {tuple(indexes.shape)}: expected (B, C, ...), B strings"
            )
        rest = self._rest(self._dither(indexes.shape[1:], indexes.device))
        k = np.zeros(indexes.shape)
        for k_i, string, scales in zip(k, strings, indexes, strict=True):
            symbols = decode_gaussians(string, -_flat(rest, np.float64), _flat(scales, np.float64))
            k_i[...] = symbols.reshape(k_i.shape)
        exact = torch.promote_types(dtype if means is None else means.dtype, torch.float32)
        v_hat = torch.from_numpy(k).to(indexes.device, exact) + rest.to(exact)
        return v_hat.to(dtype) if means is None else (v_hat + means.to(exact)).to(means.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A stock checkpoint brings tables, which this module does not have.
        for name in ("_quantized_cdf", "_offset", "_cdf_length", "scale_table"):
            empty = getattr(self, name).new_empty(0)
            setattr(self, name, empty)
            state_dict[prefix + name] = empty
        super()._load_from_state_dict(state_dict, prefix, *args)


def _flat(tensor: Tensor, dtype: type) -> np.ndarray:
    """A tensor's elements in order, as a vector of NumPy."""
    return np.ascontiguousarray(tensor.detach().cpu().double().numpy().ravel().astype(dtype))


def anneal(model: nn.Module, temperature: float) -> None:
    """Sets the temperature of soft rounding; if it changes, coding tables are cleared: `update` the model.

    Args:
        model: of a `universal` class.
        temperature: at least 0; infinite for universal quantisation without soft rounding.

    Raises:
        ValueError: the temperature is negative or not a number, or nothing in the model has one.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}; it must be at least 0 (hard rounding)")
    found = [module for module in model.modules() if isinstance(module, _Universal)]
    if not found:
        raise ValueError(f"{type(model).__name__} has no temperature; make its class with `universal`")
    for module in found:
        if float(module.temperature) == float(torch.tensor(temperature)):
            continue
        module.temperature.fill_(temperature)
        if isinstance(module, UniversalBottleneck):
            for name in ("_quantized_cdf", "_offset", "_cdf_length"):
                setattr(module, name, getattr(module, name).new_empty(0))


@functools.cache
def universal(architecture: type[CompressionModel]) -> type[CompressionModel]:
    """The universally quantised counterpart of a model class, with the same constructor.

    Args:
        architecture: a class whose instances hold stock `EntropyBottleneck` and
            `GaussianConditional` modules and quantise nowhere else.

    Returns:
        A subclass; every call with the same class gives the same one.

    Raises:
        UnsupportedModelError: when an instance is made of a class that quantises elsewhere.
    """

    class Universal(architecture):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            _check(self, architecture.__name__)
            stock = [(n, m) for n, m in self.named_modules() if type(m) in _REPLACEMENTS]
            for number, (name, module) in enumerate(stock):
                parent, _, last = name.rpartition(".")
                new = _REPLACEMENTS[type(module)](module)
                new.dither_block = number
                setattr(self.get_submodule(parent), last, new)

        @full_precision()
        def compress(self, x: Tensor, **kwargs: Any) -> dict[str, Any]:
            check_images(x, dtypes=(next(self.parameters()).dtype,))
            return super().compress(x, **kwargs)

        @full_precision()
        def decompress(self, strings: list[list[bytes]], shape: Any, **kwargs: Any) -> dict[str, Tensor]:
            return super().decompress(strings, shape, **kwargs)

    Universal.__name__ = Universal.__qualname__ = f"Universal{architecture.__name__}"
    Universal.__module__ = __name__
    Universal.__doc__ = f"{architecture.__name__} with universal quantisation; see `universal`."
    return Universal


_REPLACEMENTS = {
    EntropyBottleneck: UniversalBottleneck.like,
    GaussianConditional: UniversalGaussian.like,
}


def _check(model: nn.Module, name: str) -> None:
    for module in model.modules():
        if isinstance(module, EntropyModel) and type(module) not in _REPLACEMENTS:
            raise UnsupportedModelError(
                f"{name} quantises with {type(module).__name__}, which has no universal counterpart; "
                "take a model that has only EntropyBottleneck and GaussianConditional"
            )
    for part in ("context_prediction", "latent_codec", "Gain"):
        if hasattr(model, part):
            raise UnsupportedModelError(
                f"{name} has `{part}`, so it rounds latents outside its entropy models; universal "
                "quantisation takes models without it, such as FactorizedPrior, ScaleHyperprior and "
                "MeanScaleHyperprior"
            )


UniversalFactorizedPrior = universal(FactorizedPrior)
UniversalScaleHyperprior = universal(ScaleHyperprior)
UniversalMeanScaleHyperprior = universal(MeanScaleHyperprior)

ARCHITECTURES = {
    "bmshj2018-factorized-uq": UniversalFactorizedPrior,
    "bmshj2018-hyperprior-uq": UniversalScaleHyperprior,
    "mbt2018-mean-uq": UniversalMeanScaleHyperprior,
}
"""Names under which `hooks.registration` makes the classes known to CompressAI."""
