# SPDX-License-Identifier: Apache-2.0
"""HFD as a CompressAI model: the bits of any first stage, and an image with the details that it has lost.

Hoogeboom et al., "High-fidelity image compression with score-based generative models", 2023: the first stage
minimises the squared error for its bits, and a diffusion model that sees its image x_1 draws the rest.

    model = HFD(first_stage, denoiser, quality=1)             # both trained; see zoo/train/denoiser.py
    out = model.compress(x)                                   # the first stage's strings, byte for byte
    x_hat = model.decompress(**out)["x_hat"]
    x_hat = model.decompress(**out, realism=0.5, steps=64)["x_hat"]

    x_hat = x_1 + realism tau r,   r ~ p(r | x_1)

`realism` goes from x_1 (0, bit for bit, without a call of the network) to a full draw (1). Where x_1 is the
mean of x given the bits, this line has the least squared error for every distance between the distributions
of x_hat and x (Freirich, Michaeli & Meir, "A theory of the distortion-perception tradeoff", 2021). The noise
comes from a hash of the strings (`sampling`), so a decoder gives the same image every time, alone and in a
batch.

In:  x (B, 3, H, W) in [0, 1], as the first stage takes it. Out: as CompressAI's models.
Fails with ``ShapeError`` where x_1 is too small for the network, ``ValueError`` for options out of range and
state dicts of another kind, ``SgaError`` for a forward pass in training mode, and as the first stage does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar

import torch
from compressai.models import CompressionModel
from compressai.registry import MODELS
from torch import Tensor, nn
from tqdm import tqdm

from ...coding.binding import stock_class
from ...coding.on_cpu import coded_on_cpu
from ...diffusion.samplers import SamplerName
from ...diffusion.unet import UNetConfig
from ...errors import BitstreamError, SgaError
from ...inputs import check_images
from ...precision import full_precision
from ...refine.synthesis import Precision
from .. import universal
from ..settings import from_buffer, to_buffer
from .network import ResidualDenoiser
from .sampling import Sampling, draw_residual, seed_of

__all__ = ["ARCHITECTURES", "HFD"]

FORWARD_SEED = 0  # where there are no strings
_SAMPLING = tuple(field.name for field in fields(Sampling))
_FIRST, _DENOISER, _SETTINGS = "first_stage.", "denoiser.", "_extra_state"


class HFD(CompressionModel):
    """A first stage and a denoiser; see the file's head. All other arguments are options, and attributes.

    Args:
        first_stage: any CompressAI image model; it is frozen.
        denoiser: trained on the losses of this first stage, or of a very similar one.
        quality: of the first stage, one that the denoiser knows.
        steps: of the sampler.
        seed: of the noise, in [0, 2^64), the same for every image; None: from each image's strings.
        realism: from 0, the first stage's image, to 1, a full draw.
        method: of the sampler, "dpm2m", "ddim", "heun" or "ancestral"; the last with many steps.
        window, overlap: largest side of the network's windows on the image, and their overlap, px.
        batch: windows that the network sees at a time.
        precision: of the network, "float32" or "bfloat16"; "auto" is the latter where that is fast.
        progress: whether to show a bar; by default where a terminal sees it.

    Raises:
        ValueError: an option out of range.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("steps", "seed", "realism")
    """Knobs that a command line may set; `check_options` says whether their values can be."""

    def __init__(
        self,
        first_stage: nn.Module,
        denoiser: ResidualDenoiser,
        *,
        quality: int,
        steps: int = 16,
        seed: int | None = None,
        realism: float = 1.0,
        method: SamplerName = "dpm2m",
        window: int = 256,
        overlap: int = 32,
        batch: int = 4,
        precision: Precision = "auto",
        progress: bool | None = None,
    ) -> None:
        super().__init__()
        self.first_stage = first_stage.eval().requires_grad_(False)
        self.denoiser = denoiser.to(memory_format=torch.channels_last)
        self.show_progress = progress
        self._set(
            quality=quality,
            steps=steps,
            seed=seed,
            realism=realism,
            method=method,
            window=window,
            overlap=overlap,
            batch=batch,
            precision=precision,
        )

    def _set(self, **knobs: Any) -> None:
        """Sets options as attributes."""
        self.denoiser.label_of(knobs["quality"])
        _check(knobs["seed"], knobs["realism"])
        Sampling(**{name: knobs[name] for name in _SAMPLING})
        for name, value in knobs.items():
            setattr(self, name, value)

    def _sampling(self, steps: int | None) -> Sampling:
        knobs = {name: getattr(self, name) for name in _SAMPLING}
        return Sampling(**knobs if steps is None else knobs | {"steps": steps})

    @classmethod
    def untrained(cls, quality: int = 1, **knobs: Any) -> HFD:
        """A network of the size of `hfd-small` behind a `mbt2018-mean`, both without weights."""
        from compressai.zoo.image import cfgs  # late: while CompressAI is being imported it has no zoo yet

        qualities = tuple(range(1, 9))
        config = UNetConfig(in_channels=6, widths=(64, 96, 128), blocks=1, labels=len(qualities))
        denoiser = ResidualDenoiser(config, qualities, [0.05] * len(qualities), "mbt2018-mean")
        return cls(MODELS["mbt2018-mean"](*cfgs["mbt2018-mean"][quality]), denoiser, quality=quality, **knobs)

    @classmethod
    def from_zoo(cls, state_dict: Mapping[str, Tensor], quality: int, first_stage: nn.Module | None) -> HFD:
        """The zoo's network, which serves several qualities, behind the first stage of this quality."""
        return cls(first_stage, ResidualDenoiser.from_state_dict(state_dict), quality=quality)

    def check_options(self) -> None:
        """Raises ValueError where an attribute has an invalid value."""
        self._set(**{name: value for name, value in self.settings.items() if name != "architecture"})

    @property
    def settings(self) -> dict[str, Any]:
        """The options and the first stage's architecture; JSON."""
        names = ("quality", "seed", "realism", *_SAMPLING)
        knobs = {name: getattr(self, name) for name in names}
        return {"architecture": _name_of(stock_class(type(self.first_stage))), **knobs}

    def train(self, mode: bool = True) -> HFD:
        """As in any module, except that the first stage stays in evaluation mode."""
        super().train(mode)
        self.first_stage.eval()
        return self

    def half(self) -> HFD:
        """Refused: nothing here is faster in half precision, and the network's own `precision` is better.

        Raises:
            ValueError: always.
        """
        raise ValueError("HFD computes in float32 or bfloat16; leave half precision (--half) out")

    # What the first stage does.

    @property
    def downsampling_factor(self) -> int:
        """The first stage's: sides of x are multiples of it."""
        return self.first_stage.downsampling_factor

    def update(self, *args: Any, **kwargs: Any) -> bool:
        """Make the first stage's coding tables; see its `update`."""
        return self.first_stage.update(*args, **kwargs)

    @full_precision()
    def compress(self, x: Tensor, **kwargs: Any) -> dict[str, Any]:
        """The first stage's strings and shape.

        Args:
            x: (B, 3, H, W) in [0, 1].
            kwargs: of the first stage's compress (variable rate: stage, s, inputscale).

        Raises:
            ShapeError, InputError: as `inputs.check_images`.
        """
        check_images(x, dtypes=(next(self.first_stage.parameters()).dtype,))
        codec = coded_on_cpu(self.first_stage)
        # One by one, as they are decoded: a batch would change the last bits of tables.
        coded = [codec.compress(image, **kwargs) for image in x.split(1)]
        strings = [[part[0] for part in parts] for parts in zip(*(out["strings"] for out in coded))]
        return {"strings": strings, "shape": coded[0]["shape"]}

    # What it has lost.

    @full_precision()
    def decompress(
        self,
        strings: Sequence[Sequence[bytes]],
        shape: Any,
        *,
        steps: int | None = None,
        seed: int | None = None,
        realism: float | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """The images, {"x_hat": (B, 3, H, W) in [0, 1]}.

        Args:
            strings, shape: what `compress` returned.
            steps, seed, realism: instead of the model's own.
            kwargs: of the first stage's decompress.

        Raises:
            ShapeError: a side of x_1 has less than 64 px, and realism is not 0.
            BitstreamError: the parts have different numbers of strings.
            ValueError: an option out of range.
        """
        seed, realism = self._or_own(seed, realism)
        codec = coded_on_cpu(self.first_stage)
        if realism == 0:
            return codec.decompress(strings, shape, **kwargs)
        if len({len(part) for part in strings} | {0}) != 2:
            raise BitstreamError(
                f"the parts have {[len(part) for part in strings]} strings; each part must have one an image"
            )
        # One by one: a batch would change the last bits of the first stage's images.
        single = [[[string] for string in image] for image in zip(*strings)]
        firsts = [codec.decompress(image, shape, **kwargs)["x_hat"] for image in single]
        seeds = [seed_of([part[0] for part in image]) if seed is None else seed for image in single]
        return {"x_hat": self._restored(firsts, seeds, steps, realism).clamp_(0, 1)}

    @full_precision()
    def forward(self, x: Tensor, **kwargs: Any) -> dict[str, Any]:
        """The first stage's likelihoods, and x_hat; without a seed of its own the model takes seed 0.

        Args:
            x: (B, 3, H, W) in [0, 1].
            kwargs: of the first stage's forward.

        Raises:
            SgaError: in training mode.
        """
        if self.training:
            raise SgaError(
                "HFD is in training mode, but its forward has no training loss: the denoiser is trained on "
                "pairs of images and the first stage's results (zoo/train/denoiser.py); call eval() first"
            )
        seed, realism = self._or_own(None, None)
        out = self.first_stage(x, **kwargs)
        if realism == 0:
            return out
        firsts = out["x_hat"].clamp(0, 1).split(1)
        seeds = [FORWARD_SEED if seed is None else seed] * len(firsts)
        return {**out, "x_hat": self._restored(firsts, seeds, None, realism)}

    @full_precision()
    def restore(
        self,
        x_first: Tensor,
        *,
        seed: int | None = None,
        steps: int | None = None,
        realism: float | None = None,
    ) -> Tensor:
        """Images of the first stage with a draw of their lost details, (B, 3, H, W), not clamped.

        Args:
            x_first: x_1, (B, 3, H, W) in [0, 1].
            seed, steps, realism: instead of the model's own; without any seed, seed 0.
        """
        seed, realism = self._or_own(seed, realism)
        seeds = [FORWARD_SEED if seed is None else seed] * len(x_first)
        return self._restored(x_first.split(1), seeds, steps, realism)

    def _or_own(self, seed: int | None, realism: float | None) -> tuple[int | None, float]:
        seed = self.seed if seed is None else seed
        realism = self.realism if realism is None else realism
        _check(seed, realism)
        return seed, realism

    def _restored(
        self, firsts: Sequence[Tensor], seeds: Sequence[int], steps: int | None, realism: float
    ) -> Tensor:
        """x_1 + realism tau r of each image, drawn one after the other."""
        sampling = self._sampling(steps)
        for x_first in firsts:
            sampling.windows_of(*x_first.shape[2:], self.denoiser.multiple)
        hidden = None if self.show_progress is None else not self.show_progress
        images = []
        with tqdm(
            total=len(firsts) * sampling.steps, disable=hidden, desc="hfd", unit="step", leave=False
        ) as bar:
            for x_first, seed in zip(firsts, seeds):
                drawn = draw_residual(
                    self.denoiser,
                    x_first,
                    quality=self.quality,
                    seed=seed,
                    sampling=sampling,
                    on_step=bar.update,
                )
                images.append((x_first + realism * drawn).to(x_first.dtype))
        return torch.cat(images)

    # State dicts.

    def get_extra_state(self) -> Tensor:
        """`settings`, the part of the state dict beside the weights."""
        return to_buffer(self.settings)

    def set_extra_state(self, state: Tensor) -> None:
        """Sets the options from a state dict."""
        self._set(**{name: value for name, value in from_buffer(state).items() if name != "architecture"})

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
        """Loads weights, tables and options of a model with the same architectures."""
        return super().load_state_dict(dict(state_dict), strict)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any]) -> HFD:
        """A model with these weights and options; fp16 is widened.

        Raises:
            ValueError: the state dict is of another model, or CompressAI does not know the first stage.
        """
        parts = {
            prefix: {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
            for prefix in (_FIRST, _DENOISER)
        }
        if _SETTINGS not in state_dict or not all(parts.values()):
            raise ValueError(
                f"a state dict of HFD has the keys {_FIRST}*, {_DENOISER}* and {_SETTINGS}; this one has "
                f"{', '.join(list(state_dict)[:3])} ...; a denoiser alone becomes a model by "
                "HFD(first_stage, ResidualDenoiser.from_state_dict(state_dict), quality=...)"
            )
        knobs = from_buffer(state_dict[_SETTINGS])
        architecture = knobs.pop("architecture")
        classes = _architectures()
        if architecture not in classes:
            raise ValueError(
                f"the first stage is of the architecture {architecture!r}, which CompressAI does not know; "
                "register its class under that name with compressai.registry.register_model"
            )
        first_stage = classes[architecture].from_state_dict(parts[_FIRST])
        return cls(first_stage, ResidualDenoiser.from_state_dict(parts[_DENOISER]), **knobs)


def _check(seed: int | None, realism: float) -> None:
    if not 0 <= realism <= 1:
        raise ValueError(f"realism is {realism}; choose from 0, the first stage's image, to 1, a full draw")
    if seed is not None and not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; it must lie in [0, 2^64): take it modulo 2**64")


def _architectures() -> dict[str, type[nn.Module]]:
    return {**MODELS, **universal.ARCHITECTURES}


def _name_of(architecture: type[nn.Module]) -> str:
    """CompressAI's first name of a class, else the class's own with its module."""
    for name, known in _architectures().items():
        if known is architecture:
            return name
    return f"{architecture.__module__}.{architecture.__qualname__}"


ARCHITECTURES: dict[str, type[HFD]] = {"hfd": HFD}
