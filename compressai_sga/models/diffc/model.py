# SPDX-License-Identifier: Apache-2.0
"""DiffC as a CompressAI model: sends noisy pixels step by step, at any rate with one network.

Theis, Salimans, Hoffman & Mentzer, "Lossy compression with Gaussian diffusion", 2022. See `process` for the
process, `costs` for the steps, `channel` for how a step is sent and `codec` for the bytes.

    model = DiffCFlow(denoiser, quality=4, costs=costs)      # or bpp=0.5, bits=2000, step=12
    out = model.compress(x)                                  # {"strings": [[bytes, ...]], "shape": (H, W)}
    x_hat = model.decompress(out["strings"], out["shape"])["x_hat"]
    x_hat = model.decompress(out["strings"], out["shape"], max_bytes=100)["x_hat"]   # any prefix

`DiffCAncestral` (diffc-a) draws the image from the model, given what was sent; `DiffCFlow` (diffc-f) follows
the probability flow, whose image is nearer to the original. Their bytes are the same. Every image of a batch
is coded on its own, and the network sees windows of it, of the size that it was trained on.

In:  x (B, 3, H, W) in [0, 1], H and W at least the network's multiple (8 px). Out: as CompressAI's models.
Fails with ``BitstreamError`` for strings that are damaged, cut, or of another model or machine,
``ShapeError`` for images that are too small, ``ValueError`` for options out of range, ``SgaError`` where the
cost table is missing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from compressai.models import CompressionModel
from torch import Tensor, nn
from tqdm import tqdm

from ...channels import prng
from ...diffusion.pretrained import load
from ...diffusion.unet import UNetConfig
from ...errors import BitstreamError, SgaError
from ...inputs import check_images
from ...precision import full_precision
from ..settings import from_buffer, to_buffer
from .channel import Channel, ChannelName
from .codec import Coder, Decoded, StepReport, decode_image, encode_image, path_of
from .costs import Ladder, measure_errors
from .exact_denoiser import ExactDenoiser, machine_tag, module_tag
from .network import PixelDenoiser
from .pixel_diffusion import module_of, pixel_diffusion, settings_of
from .process import Reconstruction, ideal_levels, reconstruct

__all__ = ["ARCHITECTURES", "QUALITY_BPP", "DiffC", "DiffCAncestral", "DiffCFlow"]

QUALITY_BPP = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Bits a pixel of the qualities 1 to 8."""

LEVELS = 129
"""Of the ladder: an eighth and a bit of a nat apart for our network."""

_SETTINGS = "_extra_state"
_DENOISER = "denoiser."
_NOISE_STEP = 2**24  # of the reconstruction's noise, beyond those of the stream


class DiffC(CompressionModel):
    """A denoiser and its cost table; see the file's head. All other arguments are options, and attributes.

    Args:
        denoiser: our network, or a pixel model of `diffusion.pretrained.load`.
        quality: 1 to 8, with the rate of `QUALITY_BPP`; used where bpp, bits and step are not given.
        bpp, bits, step: instead, bits a pixel, or of an image, or the number of a step. The stream ends after
            the step that brings it nearest.
        costs: the errors of `measure_costs`, (levels,) int64.
        channel: "trellis", or reverse channel coding by "orc" or "pfr".
        size: of the channel, see `channel.SIZES`: bits of the trellis' state, divergence of a block.
        steps_limit: of the path; None for the cheapest number of steps.
        steps: of a reconstruction from pure noise; from a later level it takes fewer. By default 32 for the
            flow, 100 for the ancestral draw, which loses variance in long steps.
        seed: of the shared noise, in [0, 2^64).
        progress: whether to show a bar; by default where a terminal sees it.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("steps", "seed", "bpp")
    UNREFINABLE: ClassVar[str] = "sends samples, not latents that could be refined"
    reconstruction: ClassVar[Reconstruction] = "flow"
    default_steps: ClassVar[int] = 32

    def __init__(
        self,
        denoiser: nn.Module,
        *,
        quality: int = 4,
        bpp: float | None = None,
        bits: float | None = None,
        step: int | None = None,
        costs: Tensor | None = None,
        channel: ChannelName = "trellis",
        size: int = 10,
        steps_limit: int | None = None,
        steps: int | None = None,
        seed: int = 0,
        progress: bool | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser.eval()
        pixel_diffusion(denoiser)
        self.register_buffer("costs", torch.zeros(LEVELS, dtype=torch.int64) if costs is None else costs)
        self.quality, self.bpp, self.bits, self.step = quality, bpp, bits, step
        self.channel, self.size, self.steps_limit = channel, size, steps_limit
        self.steps, self.seed = steps, seed
        self.show_progress = progress
        self.check_options()

    @classmethod
    def untrained(cls, quality: int = 4, **knobs: Any) -> DiffC:
        """A model of the size that this package trains, 5 M parameters, without weights or costs."""
        return cls(PixelDenoiser(UNetConfig(widths=(64, 128, 192), blocks=1), 64), quality=quality, **knobs)

    def half(self) -> DiffC:
        """Refused: the decoder would compute other numbers than the encoder.

        Raises:
            ValueError: always.
        """
        raise ValueError("DiffC computes in float32; leave half precision (--half) out")

    @classmethod
    def from_zoo(cls, state_dict: Mapping[str, Tensor], quality: int, first_stage: None = None) -> DiffC:
        """A model of the zoo, whose file serves all qualities."""
        return cls.from_state_dict(state_dict, quality=quality)

    @classmethod
    def from_diffusers(cls, source: str | os.PathLike[str], crops: Tensor, **knobs: Any) -> DiffC:
        """A pixel model of `diffusers`, with costs measured on these images.

        Args:
            source: folder or hub id, as `diffusion.pretrained.load` takes it.
            crops: (N, C, w, w) in [0, 1], images like those that it was trained on.
            knobs: options of the class.

        Raises:
            SgaError, UnsupportedModelError: as `load`; a latent model.
        """
        model = cls(load(source), **knobs)
        model.measure_costs(crops)
        return model

    @property
    def downsampling_factor(self) -> int:
        """Images need no padding."""
        return 1

    # Costs.

    @full_precision()
    @torch.no_grad()
    def measure_costs(self, x: Tensor, *, seed: int = 0) -> None:
        """Fills the cost table: the denoiser's error at each level.

        Args:
            x: (N, 3, w, w) crops of training images in [0, 1], of the network's window.
            seed: of the noise.
        """
        model = pixel_diffusion(self.denoiser)
        ladder = Ladder(model.lowest, model.highest, (1,) * len(self.costs))
        levels = [ladder.log_snr(level) for level in range(len(self.costs))]
        generator = torch.Generator().manual_seed(seed)
        self.costs.copy_(measure_errors(model.x_hat, model.to_signal(x), levels, generator))

    # Images to strings and back.

    def coder(self) -> Coder:
        """What encoder and decoder share, for `codec`.

        Raises:
            SgaError: there is no cost table.
        """
        self.check_options()
        if not bool((self.costs > 0).all()):
            raise SgaError(
                "DiffC has no cost table, which gives both sides the steps; call "
                "model.measure_costs(crops) with training images, or load a state dict that has one"
            )
        model = pixel_diffusion(self.denoiser)
        return Coder(
            denoiser=self._exact(),
            ladder=Ladder(model.lowest, model.highest, tuple(self.costs.tolist())),
            channel=Channel(self.channel, self.size),
            model_tag=module_tag(self),
            machine_tag=machine_tag(self.costs.device),
            seed=self.seed,
            steps_limit=self.steps_limit,
        )

    @full_precision()
    @torch.no_grad()
    def compress(self, x: Tensor) -> dict[str, Any]:
        """Encodes images (B, 3, H, W) in [0, 1]: one string for each image, and their shape.

        Raises:
            ShapeError: an image is too small for the network, or x is no batch of images.
            InputError: as `inputs.check_images`.
            ValueError: more bits are wanted than the image itself has.
            SgaError: there is no cost table.
        """
        self._check_images(x)
        model, coder = pixel_diffusion(self.denoiser), self.coder()
        strings = []
        for image in x:
            with self._bar("compress") as report:
                signal = model.to_signal(image[None])[0]
                code = encode_image(signal, coder, **self._target(x, coder), progress=report)
            strings.append(code.data)
        return {"strings": [strings], "shape": torch.Size(x.shape[2:])}

    @full_precision()
    @torch.no_grad()
    def decompress(
        self, strings: Sequence[Sequence[bytes]], shape: Sequence[int], *, max_bytes: int | None = None
    ) -> dict[str, Tensor]:
        """The images, {"x_hat": (B, 3, H, W) in [0, 1]}.

        Args:
            strings, shape: what `compress` returned.
            max_bytes: decode only the first max_bytes bytes of each string; the strings may also be cut.

        Raises:
            BitstreamError: a string is damaged, cut (without `max_bytes`), holds no step, or comes from
                another model, or from a machine on which the network gives other numbers.
        """
        images = []
        for got in self._decoded(strings, shape, max_bytes):
            images.append(self._image(got.z[None].to(self.costs.device), got.log_snr, got.seed))
        return {"x_hat": torch.cat(images).clamp(0, 1)}

    @full_precision()
    @torch.no_grad()
    def check(self, strings: Sequence[Sequence[bytes]], shape: Sequence[int]) -> None:
        """Decodes the strings without reconstructing the images.

        Raises:
            BitstreamError: as `decompress`.
        """
        for _ in self._decoded(strings, shape, None):
            pass

    @full_precision()
    @torch.no_grad()
    def forward(self, x: Tensor) -> dict[str, Any]:
        """Sends over an ideal channel, up to the step where the stream would end.

        Returns:
            x_hat (B, 3, H, W), and likelihoods {"z": (B, 3, H, W)}: the divergence of all steps, spread
            evenly over the pixels, so that -log2 of them sums to it.
        """
        self._check_images(x)
        model, coder = pixel_diffusion(self.denoiser), self.coder()
        path = [coder.ladder.log_snr(level) for level in path_of(coder, x[0].numel())]
        images, likelihoods = [], []
        for image in x:
            signal = model.to_signal(image[None]).double()
            generator = torch.Generator().manual_seed(self.seed % 2**63)
            target, levels = self._target(x, coder), torch.tensor(path, dtype=torch.float64)
            spent, kept = 0.0, None
            for number, level in enumerate(ideal_levels(coder.denoiser, signal.cpu(), levels, generator)):
                now = spent + float(level.bits)
                wanted = target.get("target_bits", math.inf)
                if number > 1 and now - wanted > wanted - spent:
                    break
                spent, kept = now, level
                if number == target.get("steps", len(path)) or (number and now >= wanted):
                    break
            images.append(self._image(kept.z.to(x.device), kept.log_snr, self.seed))
            likelihoods.append(torch.full_like(image, 2 ** (-spent / image.numel())))
        return {"x_hat": torch.cat(images), "likelihoods": {"z": torch.stack(likelihoods)}}

    # Inside.

    def _decoded(
        self, strings: Sequence[Sequence[bytes]], shape: Sequence[int], max_bytes: int | None
    ) -> Iterator[Decoded]:
        if len(strings) != 1 or not strings[0] or len(shape) != 2:
            raise BitstreamError(
                f"{[len(part) for part in strings]} strings and shape {tuple(shape)}; DiffC has one string "
                "for each image, and (H, W)"
            )
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes}; it must be at least 1")
        size = (pixel_diffusion(self.denoiser).channels, *shape)
        self._exact().window_of(*shape)
        coder, whole = self.coder(), max_bytes is None
        for data in strings[0]:
            with self._bar("decompress") as report:
                yield decode_image(data[:max_bytes], size, coder, whole=whole, progress=report)

    def _exact(self) -> ExactDenoiser:
        model = pixel_diffusion(self.denoiser)
        return ExactDenoiser(
            model.x_hat,
            window=model.window,
            multiple=model.multiple,
            device=self.costs.device,
        )

    def _image(self, z: Tensor, log_snr: float, seed: int) -> Tensor:
        """(1, 3, H, W) from z (1, 3, H, W) at a level."""
        model = pixel_diffusion(self.denoiser)
        steps = self.default_steps if self.steps is None else self.steps
        share = (model.highest - log_snr) / (model.highest - model.lowest)

        def noise(step: int, like: Tensor) -> Tensor:
            drawn = prng.normal(seed, lanes=like.numel(), step=_NOISE_STEP + step)
            return drawn.reshape(like.shape).to(like)

        x_hat = reconstruct(
            self._exact(),
            z,
            log_snr,
            method=self.reconstruction,
            steps=max(2, math.ceil(steps * share)),
            highest=model.highest,
            noise=noise,
        )
        return model.to_image(x_hat).float()

    def _target(self, x: Tensor, coder: Coder) -> dict[str, Any]:
        """The arguments of `encode_image` that say when to stop."""
        if self.step is not None:
            return {"steps": self.step}
        pixels = x.shape[2] * x.shape[3]
        bpp = QUALITY_BPP[self.quality - 1] if self.bpp is None else self.bpp
        bits = bpp * pixels if self.bits is None else float(self.bits)
        most = 8 * x.shape[1]
        if bits > most * pixels:
            raise ValueError(
                f"{bits / pixels:g} bits a pixel: the image itself has {most}, and all steps of this model "
                f"send about {_all_bits(coder, x[0].numel()) / pixels:.1f} of an average image; choose less"
            )
        return {"target_bits": bits}

    @contextmanager
    def _bar(self, what: str) -> Iterator[Callable[[StepReport], None]]:
        hidden = None if self.show_progress is None else not self.show_progress
        with tqdm(disable=hidden, desc=f"diffc {what}", unit="step", leave=False) as bar:

            def report(step: StepReport) -> None:
                bar.set_postfix_str(f"{step.bits / 8:.0f} bytes", refresh=False)
                bar.update()

            yield report

    def _check_images(self, x: Tensor) -> None:
        dtypes = torch.float32, next(self.parameters()).dtype
        check_images(x, channels=pixel_diffusion(self.denoiser).channels, dtypes=dtypes)
        self._exact().window_of(*x.shape[2:])

    def check_options(self) -> None:
        """Raises ValueError where an attribute has an invalid value."""
        if not 1 <= self.quality <= len(QUALITY_BPP):
            raise ValueError(
                f"quality is {self.quality}; choose 1 to {len(QUALITY_BPP)}, for {QUALITY_BPP} bpp"
            )
        for name in ("bpp", "bits", "step"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be positive")
        if (self.steps is not None and self.steps < 1) or not 0 <= self.seed < 2**64:
            raise ValueError(
                f"steps is {self.steps} and seed {self.seed}; steps must be at least 1, and seed must lie "
                "in [0, 2^64)"
            )
        if self.steps_limit is not None and not 1 <= self.steps_limit <= 255:
            raise ValueError(f"steps_limit is {self.steps_limit}; it must be from 1 to 255")
        Channel(self.channel, self.size)

    # State dicts.

    def get_extra_state(self) -> Tensor:
        """The denoiser's settings, beside its weights."""
        return to_buffer(settings_of(self.denoiser))

    def set_extra_state(self, state: Tensor) -> None:
        """Does nothing; `from_state_dict` reads the settings."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
        """Weights and costs of a model with the same architecture."""
        return super().load_state_dict(dict(state_dict), strict)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any], **knobs: Any) -> DiffC:
        """A model with these weights and costs; fp16 is widened.

        Raises:
            ValueError: the state dict is of another model.
        """
        weights = {k.removeprefix(_DENOISER): v for k, v in state_dict.items() if k.startswith(_DENOISER)}
        if "costs" not in state_dict or _SETTINGS not in state_dict or not weights:
            raise ValueError(
                f"a state dict of DiffC has the keys {_DENOISER}*, costs and {_SETTINGS}; this one has "
                f"{', '.join(list(state_dict)[:3])} ...; a denoiser alone becomes a model by "
                "DiffCFlow(PixelDenoiser.from_state_dict(state_dict)) and measure_costs"
            )
        denoiser = module_of(from_buffer(state_dict[_SETTINGS]), weights)
        return cls(denoiser, costs=state_dict["costs"].clone(), **knobs)


def _all_bits(coder: Coder, dims: int) -> float:
    """The expected divergence of all steps for an image with `dims` values."""
    path = path_of(coder, dims)
    return sum(coder.ladder.kl_millibits(start, end, dims) for start, end in zip(path, path[1:])) / 1000


class DiffCAncestral(DiffC):
    """DiffC-A: the image is a draw from the model, given what was sent."""

    reconstruction = "ancestral"
    default_steps = 100


class DiffCFlow(DiffC):
    """DiffC-F: the image is the end of the probability flow from what was sent."""


ARCHITECTURES: dict[str, type[DiffC]] = {"diffc-a": DiffCAncestral, "diffc-f": DiffCFlow}
