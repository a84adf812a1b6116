# SPDX-License-Identifier: Apache-2.0
"""The one refinement loop: move the latents of a frozen model so that image and bits get better.

In:  a CompressAI model in evaluation mode with its tables, images x (B, 3, H, W) in [0, 1].
Out: the strings that the stock encoder writes for the refined symbols, which the stock decoder turns
     into an image, and the rate and distortion of both, measured on these very strings.

Latents y and z start at the encoder's values, and Adam minimises bpp + lmbda D with relaxed rounding
(Yang, Bamler & Mandt 2020). The relaxed loss follows the real codec: quantisation around the medians and the
predicted means, likelihoods from the coder's table of scales, the decoder's clamp, no distortion in the
padding. At some steps the latents are really rounded. Each image keeps its best rounded result, the unrefined
one included, so no image ends up worse.

Fails with ``UnsupportedModelError`` (which part is missing), ``ShapeError``, ``ValueError``.
"""

from __future__ import annotations

import dataclasses
import inspect
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from compressai.ops import compute_padding
from torch import Tensor, nn

from ..copies import copied
from ..errors import ShapeError, UnsupportedModelError
from ..inputs import check_images, check_weights
from ..lmbda import nearest_published, set_trained_lmbda, trained_lmbda
from ..precision import full_float32, full_precision, tf32_is_allowed
from ..typing import Distortion, StepCallback
from ..wrappers import unwrapped
from .codecs import CodecTreeLatents
from .frames import InterLatents
from .latents import FactorizedLatents, HyperpriorLatents, LatentAdapter, Latents, Rounding, hard_rounding
from .objective import RateDistortion, distortion, estimate_lmbda
from .presets import RefineConfig
from .rdoq import polish
from .synthesis import FastSynthesis

__all__ = ["ADAPTERS", "RefineResult", "build_adapter", "refine", "refined"]

ADAPTERS: list[type[LatentAdapter]] = [InterLatents, CodecTreeLatents, HyperpriorLatents, FactorizedLatents]
"""The latent structures that can be refined; the first whose `lacks` finds nothing takes a model."""
_WANTED = (
    "Give an image model of CompressAI or one built from its parts, or add an adapter for its structure to "
    'compressai_sga.refine.ADAPTERS (CONTRIBUTING.md, "A latent structure")'
)
STRIDE = 64  # images are padded to multiples of this, as stock eval_model does
# Bits of strings against -log2 of their likelihoods. Below: no symbol takes more than 16 bits of a table, and
# a likelihood may be as small as 1e-9, 30 bits. Above: a coder's start and end, and escapes.
LEAST_BITS, MOST_BITS, STRING_BITS = 0.5, 1.25, 128
MS_SSIM_SIDE = 160  # pytorch_msssim's five scales need more
READ_EVERY = 20  # steps after which losses are read from a GPU, which must wait for that
Padding = tuple[int, int, int, int]


@dataclass(frozen=True)
class RefineResult:
    """Outcome of `refine`.

    Attributes:
        strings, shape: what model.compress returns; decoded by the stock model.decompress, for a model on a
            GPU by that of `coding.coded_on_cpu`.
        x_hat: the decoder's image without padding, (B, 3, H, W) in [0, 1].
        likelihoods: per latent name, probability of every refined symbol.
        before, after: rate and distortion of the unrefined and the refined strings.
        before_x_hat: the unrefined image, like x_hat.
        lmbda: trade-off used.
        pad: (left, right, top, bottom) padding of what the strings decode to.
        config: the configuration used.
        trace: one row a step: step, loss (mean over the images, relaxed rounding).
        seconds: wall time of everything.
        threads: of torch on the CPU, with which sums may differ in their last bits, and the bytes with them.
        notes: what was wrong on the way, in sentences: a model without likelihood bounds, steps that an image
            skipped because its gradient was not finite. Each is also a warning.
    """

    strings: list[list[bytes]]
    shape: Any
    x_hat: Tensor
    likelihoods: dict[str, Tensor]
    before: RateDistortion
    after: RateDistortion
    before_x_hat: Tensor
    lmbda: float
    pad: Padding
    config: RefineConfig
    trace: list[dict[str, float]] = field(repr=False)
    seconds: float
    threads: int
    notes: tuple[str, ...] = ()

    def of(self, index: int) -> RefineResult:
        """The result of one image, as of a batch of one; its trace is that of the batch."""
        one, own = slice(index, index + 1), _in_batch(index)
        return dataclasses.replace(
            self,
            strings=[part[one] for part in self.strings],
            x_hat=self.x_hat[one],
            likelihoods={name: p[one] for name, p in self.likelihoods.items()},
            before=self.before.of(index),
            after=self.after.of(index),
            before_x_hat=self.before_x_hat[one],
            notes=tuple(
                note.replace(own, _in_batch(0), 1)
                for note in self.notes
                if note.startswith(own) or not note.startswith("image ")
            ),
        )


@full_precision()
def refine(
    model: nn.Module,
    x: Tensor,
    method: str | None = None,
    *,
    preset: str | None = None,
    steps: int | None = None,
    lmbda: float | None = None,
    lr: float | None = None,
    seed: int = 0,
    metric: Distortion = "mse",
    pad: Padding | None = None,
    config: RefineConfig | None = None,
    on_step: StepCallback | None = None,
    compress_kwargs: Mapping[str, Any] | None = None,
) -> RefineResult:
    """Refine the latents of x and code them; the model's weights and tables are not changed.

    Args:
        model: any CompressAI image model, or one built from the same parts; float32, tables updated. It may
            be compiled or inside DataParallel: the bare model is what is refined. Where it has a
            `first_stage`, as `models.hfd.HFD` does, the first stage codes: its latents are refined, and its
            image is measured.
        x: images in [0, 1], shape (B, 3, H, W), on the model's device.
        method, preset, steps, lmbda, lr, seed, metric: see `RefineConfig.make`; "ssl" by default.
            `lmbda` None takes the value that the model was trained with, as noted by
            `set_trained_lmbda`, or else an estimate from the first batch, which is noted on the model
            so that all its images get the same (not for variable-rate models).
        pad: (left, right, top, bottom) padding that x already carries, as from
            `compressai.ops.compute_padding`; it carries no distortion. None: x is bare, and is padded
            here where its sides are not multiples of 64 (the result's `pad` says how).
        config: replaces all of the options above but `pad`.
        on_step: called for every step with (step, steps, loss); right after it on a CPU, for 20 steps at a
            time on a GPU, which would have to wait to tell its losses.
        compress_kwargs: further arguments of model.compress and model.decompress (variable-rate models:
            stage, s, inputscale).

    Returns:
        RefineResult. The loss after is never above the loss before, for any image.

    Raises:
        UnsupportedModelError: a part is missing, the model is not in float32, or its coding tables do not
            fit its likelihoods.
        ShapeError: x is no batch of RGB images, or smaller than its padding.
        InputError: x is not of float32 in [0, 1], or a weight is not finite.
        ValueError: an option is out of range.
    """
    start = time.perf_counter()
    if config is None:
        config = RefineConfig.make(method, preset, steps, lmbda, lr, seed, metric)
    model = _coding_model(model)
    check_model(model)
    check_images(x)
    if x.is_cuda and tf32_is_allowed():
        warnings.warn(
            "torch allows TF32 on this GPU, where model.decompress would take other coding tables than those "
            "of refined strings; decode on a CPU, or with compressai_sga.coding.coded_on_cpu(model)",
            stacklevel=3,
        )
    x, pad = _pad(x, pad)
    if config.metric == "ms-ssim" and min(_inner_size(x, pad)) <= MS_SSIM_SIDE:
        raise ShapeError(
            f"MS-SSIM needs sides of more than {MS_SSIM_SIDE} pixels, the image has "
            f"{'x'.join(map(str, _inner_size(x, pad)))}; use metric='mse'"
        )
    with torch.inference_mode(False), torch.enable_grad(), full_float32():
        x = x.clone()
        run = _Run(model, x, pad, config, dict(compress_kwargs or {}))
        trace = run.descend(on_step)
        result = run.finish(trace, start)
    for note in result.notes:
        warnings.warn(note, stacklevel=3)
    return result


@contextmanager
def refined(
    model: nn.Module,
    method: str | None = None,
    *,
    compress_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Iterator[list[RefineResult]]:
    """A context in which model.compress(x, ...) refines the latents before it codes them.

    Args:
        model: as in `refine`; gets its own `compress` back at the end. Within `DataParallel` that is
            `model.module.compress`.
        method, options: as in `refine`; but x comes padded, as for the stock model.
        compress_kwargs: defaults for the arguments that the caller of compress gives itself.

    Yields:
        A list to which the `RefineResult` of every call is appended.
    """
    model = unwrapped(model)  # which is what `model.compress` or `model.module.compress` calls
    results: list[RefineResult] = []
    defaults = dict(compress_kwargs or {})
    parameters = list(inspect.signature(model.compress).parameters)[1:]
    outer = vars(model).get("compress")

    def compress(x: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        check_images(x)
        if x.shape[2] % STRIDE or x.shape[3] % STRIDE:
            raise ShapeError(
                f"compress takes images padded to multiples of {STRIDE}, not {tuple(x.shape)}; pad x as "
                "compressai.ops.compute_padding says and name it with pad=, or call refine"
            )
        kwargs = defaults | dict(zip(parameters, args)) | kwargs
        del model.compress  # the refinement itself calls the encoder of the class
        try:
            result = refine(model, x, method, compress_kwargs=kwargs, **options)
        finally:
            model.compress = compress
        results.append(result)
        return {"strings": result.strings, "shape": result.shape}

    model.compress = compress
    try:
        yield results
    finally:
        del model.compress
        if outer is not None:
            model.compress = outer


def _pad(x: Tensor, pad: Padding | None) -> tuple[Tensor, Padding]:
    height, width = x.shape[2:]
    if pad is None:
        pad, _ = compute_padding(height, width, min_div=STRIDE)
        return F.pad(x, pad), pad
    left, right, top, bottom = pad
    if min(pad) < 0 or left + right >= width or top + bottom >= height:
        raise ShapeError(f"padding {tuple(pad)} leaves nothing of an image of {height}x{width}")
    return x, (left, right, top, bottom)


def _inner_size(x: Tensor, pad: Padding) -> tuple[int, int]:
    left, right, top, bottom = pad
    return x.shape[2] - top - bottom, x.shape[3] - left - right


def check_model(model: nn.Module) -> None:
    """Refuse a model that cannot be refined, whatever its latents are.

    Raises:
        UnsupportedModelError: a part is missing, it is not in float32, or says itself that it cannot.
        InputError: a weight is NaN or infinite.
    """
    absent = [part for part in ("compress", "decompress") if not hasattr(model, part)]
    if absent:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no {' and no '.join(absent)}, so it makes no strings. {_WANTED}"
        )
    dtypes = {p.dtype for p in model.parameters()}
    if dtypes != {torch.float32}:
        names = ", ".join(sorted(str(d) for d in dtypes))
        raise UnsupportedModelError(
            f"refinement works on float32 models, this one has {names}; call model.float() first"
        )
    for module in model.modules():
        if hasattr(module, "UNREFINABLE"):
            raise UnsupportedModelError(f"{type(model).__name__} {module.UNREFINABLE}")
    check_weights(model)


def build_adapter(model: nn.Module, compress_kwargs: Mapping[str, Any]) -> LatentAdapter:
    """The adapter for the model's latent structure, over a frozen copy of the model.

    Raises:
        UnsupportedModelError: no structure matches; the message says what was looked for.
    """
    lacking: dict[str, list[str]] = {}
    for adapter in ADAPTERS:
        lacking[adapter.__name__] = adapter.lacks(model)
        if not lacking[adapter.__name__]:
            return adapter(copied(model).eval().requires_grad_(False), compress_kwargs)
    structures = "; ".join(f"{', '.join(parts)} for {name}" for name, parts in lacking.items())
    raise UnsupportedModelError(
        f"{type(model).__name__} has none of the known latent structures. Missing are {structures}. {_WANTED}"
    )


def _in_batch(index: int) -> str:
    """How notes name an image."""
    return f"image {index} of the batch"


def _coding_model(model: nn.Module) -> nn.Module:
    """The bare model whose latents are refined."""
    model = unwrapped(model)
    return unwrapped(getattr(model, "first_stage", model))


class _Run:
    """State of one refinement: the latents, and for each image the best hard result so far."""

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        pad: Padding,
        config: RefineConfig,
        compress_kwargs: dict[str, Any],
    ):
        self.config, self.pad, self.padded = config, pad, x
        left, right, top, bottom = pad
        self.crop = slice(top, x.shape[2] - bottom), slice(left, x.shape[3] - right)
        self.x = x[..., self.crop[0], self.crop[1]]
        self.pixels = self.x.shape[2] * self.x.shape[3]
        self.generator = torch.Generator(x.device).manual_seed(config.seed)
        self.adapter = build_adapter(model, compress_kwargs)
        self.initial, self.unrefined = self.adapter.latents_of(x)
        latents = self.initial
        self.lmbda = config.lmbda or trained_lmbda(model, config.metric)
        if self.lmbda is None:
            own = torch.Generator(x.device).manual_seed(0)  # the estimate is made once, then noted
            estimate = estimate_lmbda(self.adapter, latents, self.x, self.crop, config.metric, own)
            self.lmbda = nearest_published(estimate, config.metric)
            if not self.adapter.variable_rate:  # there it would be that of this rate point alone
                set_trained_lmbda(model, self.lmbda, config.metric)
        self.before_x_hat = self._image(self.unrefined)
        error = (self.x - self.before_x_hat).square().mean((1, 2, 3))
        self.fast = FastSynthesis(self.adapter.synthesis, config.precision, error)
        self._check_adapter(latents)
        self.latents = {name: v.detach().clone().requires_grad_() for name, v in latents.items()}
        self.best_latents: Latents = {name: v.detach().clone() for name, v in latents.items()}
        self.best_loss = self.hard_loss(self.best_latents)
        self.skipped = torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def _image(self, out: Mapping[str, Any]) -> Tensor:
        return self.adapter.decompress(out)[..., self.crop[0], self.crop[1]]

    @torch.no_grad()
    def _check_adapter(self, latents: Latents) -> None:
        """The adapter's own hard rounding must give stock's image, and about the bits of stock's strings.

        Stock's own decoder may now and then choose another coding table than the encoder. Such an image of a
        batch is left as it is.
        """
        coded = self.adapter.code(latents, hard_rounding)
        x_hat = self.adapter.synthesise(coded.y_hat).clamp(0, 1)[..., self.crop[0], self.crop[1]]
        # Not exact: in autoregressive models a tie may round the other way in another summation order.
        difference, error = (
            (other - self.before_x_hat).square().mean((1, 2, 3)).sqrt() for other in (x_hat, self.x)
        )
        self.differs = ~(difference <= 0.1 * error + 1e-3)
        if self.differs.all():
            raise UnsupportedModelError(
                f"{type(self.adapter.model).__name__} does not decode as its parts would: the images differ "
                f"by {difference.min().item():.3g} (RMS); its compress or decompress must do what the stock "
                "one does"
            )
        strings = [string for part in self.unrefined["strings"] for string in part]
        real, ideal = 8 * sum(map(len, strings)), coded.bits().sum().item()
        if not ideal * LEAST_BITS <= real <= ideal * MOST_BITS + STRING_BITS * len(strings):
            raise UnsupportedModelError(
                f"{type(self.adapter.model).__name__} codes the unrefined latents in {real} bits, but by "
                f"their likelihoods they take {ideal:.0f}: the coding tables do not fit the model, and "
                "refinement would save other bits than are written; call model.update(force=True), and leave "
                "build_indexes and the coder as they are in CompressAI"
            )

    @torch.no_grad()
    def hard_loss(self, latents: Latents) -> Tensor:
        """Loss of every image when the latents are rounded, by ideal code length; shape (B,)."""
        coded = self.adapter.code(latents, hard_rounding)
        x_hat = self.adapter.synthesise(coded.y_hat)[..., self.crop[0], self.crop[1]]
        return coded.bits() / self.pixels + self.lmbda * distortion(self.x, x_hat, self.config.metric)

    def keep_best(self, latents: Latents) -> None:
        """Round latents and keep them for the images whose loss is the lowest so far."""
        latents = {name: v.detach() for name, v in latents.items()}
        loss = self.hard_loss(latents)
        better = loss < self.best_loss
        self.best_loss = torch.where(better, loss, self.best_loss)
        for name, best in self.best_latents.items():
            self.best_latents[name] = torch.where(better[:, None, None, None], latents[name], best)

    def descend(self, on_step: StepCallback | None) -> list[dict[str, float]]:
        """The gradient steps; returns the trace."""
        config, steps = self.config, self.config.steps
        optimizer = torch.optim.Adam(list(self.latents.values()), lr=0.0, betas=config.betas, foreach=False)
        count = config.hard_evaluations
        hard_steps = {round(steps * (0.5 + 0.5 * (k + 1) / count)) for k in range(count)}
        every = 1 if self.x.device.type == "cpu" else READ_EVERY
        unread: list[Tensor] = []
        trace: list[dict[str, float]] = []
        for step in range(steps):
            rounding = self._rounding(step)
            coded = self.adapter.code(self.latents, rounding)
            x_hat = self.fast(coded.y_hat)[..., self.crop[0], self.crop[1]]
            losses = coded.bits() / self.pixels + self.lmbda * distortion(self.x, x_hat, config.metric)
            moving = list(self.latents.values())
            # In bits of the image: Adam's eps is then far below the gradients, whatever the image's size.
            gradients = torch.autograd.grad(self.pixels * losses.sum(), moving)
            optimizer.param_groups[0]["lr"] = config.lr(step, steps)
            self._step(optimizer, moving, gradients)
            unread.append(losses.detach().mean())
            if len(unread) == every or step + 1 == steps:
                for loss in torch.stack(unread).tolist():
                    trace.append({"step": len(trace), "loss": loss})
                    if on_step is not None:
                        on_step(len(trace) - 1, steps, loss)
                unread.clear()
            if step + 1 in hard_steps:
                self.keep_best(self.latents)
        if config.polish and config.metric == "mse":
            self.keep_best(self._polished())
        return trace

    def _step(
        self, optimizer: torch.optim.Optimizer, moving: list[Tensor], gradients: Sequence[Tensor]
    ) -> None:
        """A step of all images but those whose gradient is not finite, without waiting for the device."""
        finite = torch.stack([gradient.flatten(1).sum(1) for gradient in gradients]).isfinite().all(0)
        self.skipped += ~finite
        moves = finite.view(-1, 1, 1, 1)
        before = [latent.detach().clone() for latent in moving]
        for latent, gradient in zip(moving, gradients):
            latent.grad = torch.where(moves, gradient, 0.0)
        optimizer.step()
        with torch.no_grad():
            for latent, start in zip(moving, before):
                latent.copy_(torch.where(moves, latent, start))

    def _notes(self) -> tuple[str, ...]:
        undecoded = (
            f"{_in_batch(index)} was not refined, because its unrefined strings already decode to another "
            "image than they should: the model's decoder chose other coding tables than its encoder, or "
            "decodes otherwise than its parts; code it alone, or with another entropy model"
            for index, differs in enumerate(self.differs.tolist())
            if differs
        )
        return (
            *self.adapter.notes,
            *undecoded,
            *(
                f"{_in_batch(index)} skipped {count} of {self.config.steps} steps, because its gradient "
                "was not finite"
                for index, count in enumerate(self.skipped.tolist())
                if count
            ),
        )

    def _polished(self) -> Latents:
        return polish(
            self.adapter,
            self.best_latents,
            lambda y_hat: self.fast(y_hat)[..., self.crop[0], self.crop[1]],
            self._costs_around,
            2 * 255**2 * self.lmbda / 3,
            self.config.polish,
            self.generator,
        )

    def _costs_around(self, x_hat: Tensor) -> Tensor:
        """Weighted squared error around each position of y in bits, shape (B, 1, h, w)."""
        left, right, top, bottom = self.pad
        error = (self.x - x_hat.clamp(0, 1)).square().mean(1, keepdim=True)
        size = self.best_latents["y"].shape[2:]
        area = self.padded[0, 0].numel() / (size[0] * size[1])
        error = F.adaptive_avg_pool2d(F.pad(error, (left, right, top, bottom)), size)
        return self.lmbda * 255**2 * area * error

    def _rounding(self, step: int) -> Rounding:
        return lambda v, name: self.config.relax(v, step, self.generator)

    @torch.no_grad()
    def finish(self, trace: list[dict[str, float]], start: float) -> RefineResult:
        """Code the best latents with the stock encoder, decode, measure, and take the better image."""
        before = self._measure(self.unrefined["strings"], self.before_x_hat)
        coded = self.adapter.code(self.best_latents, hard_rounding)
        out = self.adapter.compress(coded.grid, self.padded)
        strings, x_hat = [list(part) for part in out["strings"]], self._image(out)
        worse = self.differs | ~(self._measure(strings, x_hat).loss <= before.loss)
        if worse.any():  # by real bits; rare, as the best latents were chosen by ideal ones
            for index in worse.nonzero().flatten().tolist():
                for part, original in zip(strings, self.unrefined["strings"]):
                    part[index] = original[index]
            x_hat[worse] = self.before_x_hat[worse]
            for name, best in self.best_latents.items():
                best[worse] = self.initial[name][worse]
            coded = self.adapter.code(self.best_latents, hard_rounding)
        after = self._measure(strings, x_hat)
        return RefineResult(
            strings=strings,
            shape=out["shape"],
            x_hat=x_hat,
            likelihoods=coded.likelihoods,
            before=before,
            after=after,
            before_x_hat=self.before_x_hat,
            lmbda=self.lmbda,
            pad=self.pad,
            config=self.config,
            trace=trace,
            seconds=time.perf_counter() - start,
            threads=torch.get_num_threads(),
            notes=self._notes(),
        )

    def _measure(self, strings: list[list[bytes]], x_hat: Tensor) -> RateDistortion:
        sizes = [8 * sum(len(part[i]) for part in strings) for i in range(len(self.x))]
        bits = torch.tensor(sizes, dtype=torch.float32, device=self.x.device)
        return RateDistortion.measure(self.x, x_hat, bits, self.lmbda, self.config.metric)
