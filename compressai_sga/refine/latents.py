# SPDX-License-Identifier: Apache-2.0
"""What a model codes: one adapter per latent structure, found by inspection.

An adapter answers four questions about a frozen CompressAI model:

    latents_of(x)            which real-valued latents does the encoder make?
    code(latents, rounding)  given a rounding (hard or relaxed), which y_hat does the decoder see, and
                             how likely are the symbols under the tables that the coder uses?
    synthesis(y_hat)         which image comes out?
    compress(grid)           which strings does the *stock* encoder write for these symbols?

Rounding is a function (v, name) -> v_hat on v = (latent - centre) / step, so relaxations need not know the
medians, means and gains. Structures:

    FactorizedLatents    y under an entropy bottleneck               bmshj2018-factorized(-relu)
    HyperpriorLatents    z under a bottleneck; y Gaussian given z    bmshj2018-hyperprior, mbt2018-mean,
                         optionally with a causal context and        mbt2018, cheng2020-*, *-vbr
                         with gain and reconstruction offsets
    CodecTreeLatents     a tree of compressai.latent_codecs          cheng2020-anchor-checkerboard, MLIC, TCM,
                         (see codecs.py)                             elic2022-*, DCAE, STF, CCA, SAAF

`refine.ADAPTERS` lists them. Structure is what counts, not the name or the class of the model: an adapter
says what a model lacks for it (`lacks`), and takes the model where that is nothing. CONTRIBUTING.md says how
to add one.

Shapes: x (B, 3, H, W); y (B, C, H/16, W/16) as a rule; likelihoods have the shape of their latent.
Fails with ``UnsupportedModelError``, naming the part that is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, get_args

import torch
from compressai.entropy_models import EntropyBottleneck, GaussianConditional
from compressai.entropy_models.entropy_models_vbr import EntropyBottleneckVbr
from compressai.ops import LowerBound
from torch import Tensor, nn

from ..coding.binding import stock_class
from ..coding.on_cpu import coded_on_cpu
from ..errors import UnsupportedModelError

__all__ = [
    "CausalContext",
    "Coded",
    "FactorizedLatents",
    "HyperpriorLatents",
    "LatentAdapter",
    "Quantised",
    "Rounding",
    "code_bottleneck",
    "code_gaussian",
    "hard_rounding",
    "missing",
]

Rounding = Callable[[Tensor, str], Tensor]
Latents = dict[str, Tensor]

LIKELIHOOD_BOUND = 1e-9  # CompressAI's own


def hard_rounding(v: Tensor, name: str) -> Tensor:
    """The coder's rounding: the nearest integer. Gradients pass it as if the symbol moved with the latent."""
    return torch.round(v)


def _straight_through(
    symbols: Tensor, latent: Tensor, per_step: Tensor | float, rounding: Rounding
) -> Tensor:
    """`symbols`; hard ones get the gradient of the latent, and none of its prediction."""
    if rounding is not hard_rounding:
        return symbols
    return symbols.detach() + (latent - latent.detach()) * per_step


@dataclass(frozen=True)
class Coded:
    """Outcome of coding a set of latents.

    Attributes:
        y_hat: what the synthesis transform sees.
        likelihoods: per latent name, probability of every symbol, in (0, 1].
        grid: per latent name, the point of the quantiser's grid that the symbol stands for; handed to
            the stock encoder it gives back the same symbols, with a margin of half a step.
        moved: d -> probability of every symbol of y if it alone were d more and all else as it is; d is a
            number or of y's shape. None: symbols of y cannot be changed one by one (`rdoq`).
        step: of the quantiser of y.
    """

    y_hat: Tensor
    likelihoods: Latents
    grid: Latents
    moved: Callable[[Tensor | float], Tensor] | None = None
    step: Tensor | float = 1.0

    def bits(self) -> Tensor:
        """Ideal code length of every image in bits, shape (B,)."""
        return sum(-torch.log2(p).flatten(1).sum(1) for p in self.likelihoods.values())


# --- The two entropy models -------------------------------------------------------------------


def code_bottleneck(
    z: Tensor, bottleneck: nn.Module, rounding: Rounding, name: str, step: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Quantise around the medians; return (z_hat, likelihoods), both of z's shape."""
    medians = bottleneck._get_medians().detach().reshape(1, -1, 1, 1)
    scale = 1.0 if step is None else step
    symbols = _straight_through(rounding((z - medians) / scale, name), z, 1 / scale, rounding)
    z_hat = symbols * scale + medians
    values = z_hat.transpose(0, 1).reshape(z.shape[1], 1, -1)
    if step is None:
        likelihoods, _, _ = bottleneck._likelihood(values)
    else:
        likelihoods, _, _ = bottleneck._likelihood_variable(values, step)
    likelihoods = bottleneck.likelihood_lower_bound(likelihoods)
    shape = (z.shape[1], z.shape[0], *z.shape[2:])
    return z_hat, likelihoods.reshape(shape).transpose(0, 1)


def moved_in_bottleneck(y_hat: Tensor, bottleneck: nn.Module) -> Callable[[Tensor | float], Tensor]:
    """`Coded.moved` of a y under an entropy bottleneck."""
    return lambda move: code_bottleneck(y_hat + move, bottleneck, lambda v, _: v, "y")[1]


def table_scales(scales: Tensor, conditional: GaussianConditional) -> Tensor:
    """The entry of the coder's scale table that each predicted scale is coded with.

    The gradient is that of the (lower-bounded) predicted scale.
    """
    bounded = conditional.lower_bound_scale(scales)
    table = conditional.scale_table
    entries = table[torch.bucketize(bounded.detach(), table[:-1])]
    return bounded + (entries - bounded).detach()


@dataclass(frozen=True)
class Quantised:
    """Gaussian symbols of y, or of a part of it; tensors of one shape (B, C, h, w).

    Attributes:
        y_hat: what the decoder makes of them.
        symbols: integers, or relaxed ones.
        scales: of the coder's table; 0 where no symbol is coded.
        grid: as in `Coded`.
    """

    y_hat: Tensor
    symbols: Tensor
    scales: Tensor
    grid: Tensor

    def where(self, mask: Tensor, other: Quantised) -> Quantised:
        """These where the mask is true, those of `other` elsewhere."""
        names = [field.name for field in fields(self)]
        return Quantised(*(torch.where(mask, getattr(self, n), getattr(other, n)) for n in names))

    @staticmethod
    def cat(parts: Iterable[Quantised]) -> Quantised:
        """Groups of channels, one after the other."""
        parts = list(parts)
        return Quantised(*(torch.cat([getattr(q, f.name) for q in parts], 1) for f in fields(Quantised)))

    def likelihoods(self, conditional: GaussianConditional, move: Tensor | float = 0.0) -> Tensor:
        """Probability of every symbol plus `move`."""
        p = conditional.likelihood_lower_bound(conditional._likelihood(self.symbols + move, self.scales))
        return torch.where(self.scales > 0, p, 1.0)


def code_gaussian(
    y: Tensor,
    scales: Tensor,
    means: Tensor | None,
    conditional: GaussianConditional,
    rounding: Rounding,
    gain: Tensor | float = 1.0,
    offset: Callable[[Tensor, Tensor], Tensor] | None = None,
    name: str = "y",
) -> Quantised:
    """Quantise y around the predicted means.

    Args:
        y, scales, means: one shape; means None is zero.
        gain: 1 / step of the quantiser (variable-rate models).
        offset: reconstruction offset as a function of (symbols, scale in steps), variable-rate models.
        name: of the latent.
    """
    means = 0.0 if means is None else means
    scales = scales * gain
    symbols = _straight_through(rounding((y - means) * gain, name), y, gain, rounding)
    grid = symbols / gain + means
    y_hat = grid if offset is None else (symbols + offset(symbols, scales)) / gain + means
    return Quantised(y_hat, symbols, table_scales(scales, conditional), grid)


def coded_with_hyperprior(
    y: Quantised,
    conditional: GaussianConditional,
    z_hat: Tensor,
    z_likelihoods: Tensor,
    step: Tensor | float = 1.0,
) -> Coded:
    """What is coded for y and z."""
    return Coded(
        y.y_hat,
        {"y": y.likelihoods(conditional), "z": z_likelihoods},
        {"y": y.grid, "z": z_hat},
        lambda move: y.likelihoods(conditional, move),
        step,
    )


class CausalContext:
    """Codes y whose means depend on y_hat at earlier positions, as in the sequential decoder.

    Hard rounding: the decoder's y_hat is the fixed point of y_hat -> code_given(y_hat). A position is
    right one sweep after all positions that it depends on. So Jacobi sweeps over whole latents end at
    exactly the result of the sequential scan, after at most as many sweeps as wavefronts; usually a few.

    Relaxed rounding: the context is the previous step's sample. It approaches the decoder's context as the
    temperature falls.

    Either way the context has the gradient of y itself: a latent that moves takes its y_hat with it.
    """

    def __init__(self) -> None:
        self.sample: Tensor | None = None

    def code(
        self,
        y: Tensor,
        rounding: Rounding,
        code_given: Callable[[Tensor], Quantised],
    ) -> Quantised:
        """y quantised with the decoder's context; `code_given` quantises it, given a y_hat."""
        start = y.detach() if self.sample is None else self.sample
        hard = rounding is hard_rounding
        for _ in range(3 * y.shape[2] + y.shape[3] + 1 if hard else 1):
            coded = code_given(start + (y - y.detach()))
            change = (coded.y_hat.detach() - start).abs().max()
            start = coded.y_hat.detach()
            if hard and change < 1e-4:
                break
        if not hard:
            self.sample = start
        return coded


# --- What a model has ---------------------------------------------------------------------------


def missing(model: nn.Module, parts: Mapping[str, type | UnionType]) -> list[str]:
    """The parts, by name and class, that a model does not have, in words."""
    return [
        name
        if kind is nn.Module
        else f"{name} ({' or '.join(k.__name__ for k in get_args(kind) or (kind,))})"
        for name, kind in parts.items()
        if not isinstance(getattr(model, name, None), kind)
    ]


# --- Adapters ---------------------------------------------------------------------------------


class LatentAdapter:
    """Base class: captures latents from the stock encoder and injects them into it.

    Args:
        model: an evaluation-mode copy with frozen weights; the adapter may change it.
        compress_kwargs: what the caller passes to model.compress (variable rate: stage, s, inputscale).
    """

    #: Whether the model codes at several rates, chosen by the arguments of compress.
    variable_rate = False

    def __init__(self, model: nn.Module, compress_kwargs: Mapping[str, Any]):
        self.model = model
        self.codec = coded_on_cpu(model)  # which runs the model's own g_a, h_a and g_s
        self.compress_kwargs = dict(compress_kwargs)
        self.sources = self.find_sources(model)
        self.synthesis = self.find_synthesis(model)
        self.notes: list[str] = []
        """What the caller should know about the model."""
        unbounded = []
        for name, module in model.named_modules():
            if isinstance(module, EntropyBottleneck | EntropyBottleneckVbr | GaussianConditional):
                if module._quantized_cdf.numel() == 0:
                    raise UnsupportedModelError(
                        "the model has no coding tables yet; call model.update() first"
                    )
                if not module.use_likelihood_bound or not module.likelihood_lower_bound.bound > 0:
                    bound = LowerBound(LIKELIHOOD_BOUND)
                    module.likelihood_lower_bound = bound.to(module._quantized_cdf.device)
                    unbounded.append(name)
        if unbounded:
            self.notes.append(
                f"the likelihoods of {', '.join(unbounded)} have the lower bound 0, which half precision "
                f"makes of {LIKELIHOOD_BOUND:g}; refinement used {LIKELIHOOD_BOUND:g}, since with 0 a "
                "gradient may be NaN. Set likelihood_lower_bound.bound before you train the model further"
            )

    @staticmethod
    def lacks(model: nn.Module) -> list[str]:
        """What the model lacks for this structure, each part in words; empty: it has this structure."""
        raise NotImplementedError

    @staticmethod
    def find_sources(model: nn.Module) -> dict[str, nn.Module]:
        """The modules whose outputs are the latents, by latent name, outermost first."""
        raise NotImplementedError

    @staticmethod
    def find_synthesis(model: nn.Module) -> nn.Module:
        """The decoder's transform, y_hat -> x_hat, differentiable."""
        return model.g_s

    def code(self, latents: Latents, rounding: Rounding) -> Coded:
        """Quantise the latents with `rounding`; differentiable in them if the rounding is."""
        raise NotImplementedError

    def synthesise(self, y_hat: Tensor) -> Tensor:
        """The decoder's image in full precision; not necessarily clamped."""
        return self.synthesis(y_hat)

    @torch.no_grad()
    def latents_of(self, x: Tensor) -> tuple[Latents, dict[str, Any]]:
        """Run the stock encoder; return (its real-valued latents, what it returned).

        Raises:
            UnsupportedModelError: `compress` does not take images, or does not call the modules in question.
        """
        latents: Latents = {}
        handles = [
            module.register_forward_hook(
                lambda _m, _i, output, name=name: latents.__setitem__(name, output.clone())
            )
            for name, module in self.sources.items()
        ]
        try:
            out = self._encode(x)
        finally:
            for handle in handles:
                handle.remove()
        for name in self.sources:
            if name not in latents:
                raise UnsupportedModelError(
                    f"compress of {type(self.model).__name__} does not call the module that should make the "
                    f"latent {name}; add an adapter that knows where {name} comes from (CONTRIBUTING.md, "
                    '"A latent structure")'
                )
        return {name: latents[name] for name in self.sources}, out

    def _encode(self, x: Tensor) -> dict[str, Any]:
        try:
            return self.codec.compress(x, **self.compress_kwargs)
        except (TypeError, LookupError, AttributeError) as error:
            given = "".join(f", {name}={value!r}" for name, value in self.compress_kwargs.items())
            raise UnsupportedModelError(
                f"compress(x{given}) of {type(self.model).__name__} fails for images x of shape "
                f"{tuple(x.shape)} ({type(error).__name__}: {error}); refinement is for models whose "
                "compress takes images (B, 3, H, W)"
            ) from error

    @torch.no_grad()
    def compress(self, grid: Latents, x: Tensor) -> dict[str, Any]:
        """Run the stock encoder with its latents replaced by `grid`; return what it returns."""
        for name, module in self.sources.items():
            module.forward = lambda *_args, value=grid[name]: value.contiguous().clone()
        try:
            return self.codec.compress(x, **self.compress_kwargs)
        finally:
            for module in self.sources.values():
                del module.forward

    @torch.no_grad()
    def decompress(self, out: Mapping[str, Any]) -> Tensor:
        """The stock decoder's image for what `compress` returned, in [0, 1]."""
        x_hat = self.codec.decompress(out["strings"], out["shape"], **self.compress_kwargs)["x_hat"]
        return x_hat.clamp(0, 1)  # which CompressAI after 1.2.8 leaves to its caller

    def reset(self) -> None:
        """Clears what is kept from step to step."""


class FactorizedLatents(LatentAdapter):
    """y alone, each channel under its own learned density (Balle et al. 2017, 2018)."""

    @staticmethod
    def lacks(model: nn.Module) -> list[str]:
        parts = {"g_a": nn.Module, "g_s": nn.Module, "entropy_bottleneck": EntropyBottleneck}
        return missing(model, parts) + ["no h_a beside it"] * hasattr(model, "h_a")

    @staticmethod
    def find_sources(model: nn.Module) -> dict[str, nn.Module]:
        return {"y": model.g_a}

    def code(self, latents: Latents, rounding: Rounding) -> Coded:
        bottleneck = self.model.entropy_bottleneck
        y_hat, likelihoods = code_bottleneck(latents["y"], bottleneck, rounding, "y")
        return Coded(y_hat, {"y": likelihoods}, {"y": y_hat}, moved_in_bottleneck(y_hat, bottleneck))


class HyperpriorLatents(LatentAdapter):
    """y Gaussian given z_hat, with the model's optional parts.

    Means: when h_s (or the entropy parameters) gives two values a symbol (Minnen et al. 2018).
    Context: `context_prediction` over y_hat, see CausalContext.
    Variable rate: `Gain` and `QuantABCD` (Kamisli et al. 2024).
    """

    def __init__(self, model: nn.Module, compress_kwargs: Mapping[str, Any]):
        super().__init__(model, compress_kwargs)
        self.has_context = hasattr(model, "context_prediction")
        self.variable_rate = hasattr(model, "Gain")
        self.reset()

    @staticmethod
    def lacks(model: nn.Module) -> list[str]:
        parts: dict[str, type | UnionType] = dict.fromkeys(("g_a", "g_s", "h_a", "h_s"), nn.Module)
        parts["entropy_bottleneck"] = EntropyBottleneck | EntropyBottleneckVbr
        parts["gaussian_conditional"] = GaussianConditional
        lacking = missing(model, parts)
        if not lacking:
            kind = stock_class(type(model.gaussian_conditional))
            lacking = [
                f"GaussianConditional's own {method}, which {kind.__name__} overrides"
                for method in ("quantize", "build_indexes", "compress", "decompress", "_likelihood")
                if getattr(kind, method) is not getattr(GaussianConditional, method)
            ]
        return lacking

    @staticmethod
    def find_sources(model: nn.Module) -> dict[str, nn.Module]:
        return {"y": model.g_a, "z": model.h_a}

    def reset(self) -> None:
        self.context = CausalContext()

    def _rate_point(self) -> tuple[Tensor | float, Tensor | None]:
        """(gain of y, step of z) that the compress keywords select; (1, None) for fixed-rate models."""
        if not self.variable_rate:
            return 1.0, None
        arguments = {"stage": 2, "s": 1, "inputscale": 0} | self.compress_kwargs
        if arguments["stage"] == 1:
            return 1.0, None
        gain = arguments["inputscale"]
        if isinstance(gain, int | float) and gain == 0:
            gain = self.model.Gain[arguments["s"]].abs()
        gain = torch.as_tensor(gain, device=self.model.Gain.device, dtype=self.model.Gain.dtype)
        if not self.model.vr_entbttlnck:
            return gain, None
        step = self.model.gayn2zqstep(1.0 / gain.reshape(1))
        return gain, self.model.lower_bound_zqstep(step)[0].detach()

    def _offset(self, gain: Tensor | float) -> Callable[[Tensor, Tensor], Tensor] | None:
        """Reconstruction offset, a learned function of (scale, gain); zero for zero symbols."""
        if not isinstance(gain, Tensor) or self.model.no_quantoffset:
            return None
        conditional = self.model.gaussian_conditional

        def offset(v_hat: Tensor, scales: Tensor) -> Tensor:
            inputs = conditional.lower_bound_scale(scales).unsqueeze(-1)
            inputs = torch.cat((inputs, gain.expand(inputs.shape)), -1)
            magnitude = -self.model.QuantABCD(inputs).squeeze(-1)
            return magnitude * v_hat.clamp(-1, 1)  # equals sign(v_hat) at every integer

        return offset

    def code(self, latents: Latents, rounding: Rounding) -> Coded:
        model, y = self.model, latents["y"]
        gain, step = self._rate_point()
        z_hat, z_likelihoods = code_bottleneck(latents["z"], model.entropy_bottleneck, rounding, "z", step)
        params = model.h_s(z_hat)
        offset = self._offset(gain)

        def code_given(parameters: Tensor) -> Quantised:
            scales, means = parameters, None
            if parameters.shape[1] == 2 * y.shape[1]:
                scales, means = parameters.chunk(2, 1)
            conditional = model.gaussian_conditional
            return code_gaussian(y, scales, means, conditional, rounding, gain, offset)

        if not self.has_context:
            coded = code_given(params)
        else:
            shift = 0.0
            if getattr(model, "scl2ctx", False) and isinstance(gain, Tensor):
                shift = model.scale_to_context(gain.view(1, 1)).view(1, -1, 1, 1)

            def code_in_context(y_hat: Tensor) -> Quantised:
                mixed = torch.cat((params, model.context_prediction(y_hat) + shift), 1)
                return code_given(model.entropy_parameters(mixed))

            coded = self.context.code(y, rounding, code_in_context)
        return coded_with_hyperprior(coded, model.gaussian_conditional, z_hat, z_likelihoods, 1 / gain)
