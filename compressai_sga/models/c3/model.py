# SPDX-License-Identifier: Apache-2.0
"""C3 (Kim et al. 2024) as a CompressAI model: `compress` is the fit of a small codec to the image.

    model = C3(quality=3)                                    # or lmbda=4e-3, steps=500, max_seconds=60
    out = model.compress(x)                                  # fits; x (B, 3, H, W) in [0, 1]
    x_hat = model.decompress(out["strings"], out["shape"])["x_hat"]

There are no trained weights: everything that a decoder needs is in the strings, so any `C3` decodes any C3
strings, whatever its preset. Images of a batch are fitted together; the other images affect an image's result
by rounding errors only (see `fit.loop`). strings = [[nets of image 0, ...], [latents of image 0, ...]];
shape = (H, W), which the strings hold as well.

In:  x (B, 3, H, W) in [0, 1], any H, W from 1. Out: as CompressAI's models.
Fails with ``ValueError`` on images or budgets out of range, ``BitstreamError`` on damaged strings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from compressai.models import CompressionModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...errors import BitstreamError
from ...inputs import check_images
from ...precision import fixed_algorithms, full_float32, full_precision
from ...progress import Meter
from .config import PRESETS, Preset, lmbda_of
from .config import adaptive as candidates
from .fit.checkpoint import Checkpoint, held_interrupt
from .fit.loop import Fit, Progress
from .fit.weight_quantisation import round_nets
from .image_codec import decode_image, encode_image, latent_likelihoods, reconstruct
from .macs import Macs, macs_per_pixel
from .weights import Nets

__all__ = ["ARCHITECTURES", "C3", "C3Fast", "C3Paper", "Fitted"]


class Fitted(NamedTuple):
    """One image, fitted and coded, and how many steps that took."""

    nets: Nets
    grids: list[np.ndarray]
    strings: tuple[bytes, bytes]
    x_hat: Tensor
    steps: int


class C3(CompressionModel):
    """C3 with our default preset; see the file's head.

    Args:
        quality: 1 (fewest bits) to 8; see `config.QUALITIES`.
        lmbda: trade-off in mse + lmbda * bpp, instead of a quality.
        steps: of the fit; the preset's by default.
        seed: of the fit.
        max_seconds: wall time of the fit and coding of a batch; unlimited by default.
        preset: a name in `config.PRESETS` or a `Preset`; the class's by default.
        adaptive: whether to fit all candidates of the paper's "C3 (Adaptive)" and keep, for each image, the
            one with the least cost; for the paper's presets. Takes 12 times as long (CLIC: 6).
        warm: whether a fit starts from the default nets of the zoo, where they fit the preset.
        checkpoint: a file from which a killed fit goes on; see `fit.checkpoint`.
        keep_checkpoint: whether it stays when the images are coded, for a caller who still has to write them.
        progress: whether to show a bar; by default a terminal shows it, and a log gets a line a minute.

    Raises:
        ValueError: an argument out of range.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("lmbda", "steps", "seed", "max_seconds")
    """Keywords that a command line may give."""

    UNREFINABLE: ClassVar[str] = "is fitted to each image as it is, which leaves nothing to refine"

    preset_name = "c3"

    def __init__(
        self,
        quality: int = 4,
        *,
        lmbda: float | None = None,
        steps: int | None = None,
        seed: int = 0,
        max_seconds: float | None = None,
        preset: str | Preset | None = None,
        adaptive: bool = False,
        warm: bool = True,
        checkpoint: str | Path | None = None,
        keep_checkpoint: bool = False,
        progress: bool | None = None,
    ) -> None:
        super().__init__()
        preset = self.preset_name if preset is None else preset
        if isinstance(preset, str):
            if preset not in PRESETS:
                raise ValueError(f"preset is {preset!r}; choose one of {', '.join(PRESETS)}")
            preset = PRESETS[preset]
        self.preset: Preset = preset
        self.candidates = candidates(preset) if adaptive else (preset,)
        self.lmbda = lmbda_of(quality) if lmbda is None else lmbda
        self.steps, self.seed, self.max_seconds = steps, seed, max_seconds
        self.warm, self.checkpoint, self.keep_checkpoint = warm, checkpoint, keep_checkpoint
        self.show_progress = progress
        self.register_buffer("_where", torch.empty(0, dtype=torch.float32), persistent=False)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any]) -> C3:
        """A model with the class's defaults, from an empty state dict: there is nothing to load.

        Raises:
            ValueError: the state dict has entries, so that it is another model's.
        """
        if state_dict:
            raise ValueError(
                f"{cls.preset_name} is fitted to each image and has no weights, but the state dict has "
                f"{len(state_dict)} entries ({next(iter(state_dict))}, ...): it is another model's"
            )
        return cls()

    @classmethod
    def untrained(cls, quality: int = 4, **options: Any) -> C3:
        """A model of this quality; there is nothing to train."""
        return cls(quality, **options)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """One parameter without elements, from which CompressAI's evaluation takes the device."""
        yield nn.Parameter(self._where, requires_grad=False)

    def half(self) -> C3:
        """Refused: the decoder would compute other numbers than the encoder.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.preset_name} computes in float32; leave half precision (--half) out")

    @property
    def downsampling_factor(self) -> int:
        """Images need no padding."""
        return 1

    @property
    def macs(self) -> Macs:
        """Multiplications a pixel of the decoder."""
        return macs_per_pixel(self.preset.architecture)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that affect the result for an image, on a given machine; JSON."""
        return {
            "preset": repr(self.preset),
            "candidates": len(self.candidates),
            "lmbda": self.lmbda,
            "steps": self.preset.steps if self.steps is None else self.steps,
            "seed": self.seed,
            "max_seconds": self.max_seconds,
            "warm": self.warm,
        }

    @full_precision()
    def fit(self, x: Tensor) -> list[Fitted]:
        """Fit and code every image.

        Args:
            x: (B, 3, H, W) in [0, 1].

        Raises:
            ShapeError, InputError: as `inputs.check_images`.
            KeyboardInterrupt: with a checkpoint, only after the current step is complete and saved.
        """
        check_images(x, dtypes=(torch.float32, self._where.dtype))
        x = x.detach().clone().float().clamp_(0, 1)
        paths = [self._checkpoint_of(number) for number in range(len(self.candidates))]
        found: list[Fitted] = []
        for preset, path in zip(self.candidates, paths):
            fitted = self._fit(x, preset, path)
            pairs = zip(found or fitted, fitted, x)
            found = [min(pair, key=lambda f: self._cost(f, image)) for *pair, image in pairs]
        for path in paths:
            if path is not None and not self.keep_checkpoint:
                Checkpoint.remove(path)
        return found

    def _fit(self, x: Tensor, preset: Preset, checkpoint: Path | None) -> list[Fitted]:
        """Fits and codes every image with one preset."""
        seconds = None if self.max_seconds is None else self.max_seconds / len(self.candidates)
        # Callers are within no_grad or inference_mode.
        with torch.inference_mode(False), torch.enable_grad(), full_float32(), fixed_algorithms():
            fit = Fit(
                x.clone(),
                preset,
                self.lmbda,
                steps=self.steps,
                seed=self.seed,
                max_seconds=seconds,
                warm=self.warm,
            )
            self._run(fit, checkpoint)
            fit.take_best()
        with torch.inference_mode(False), torch.no_grad(), full_float32():
            return _coded(fit)

    def _cost(self, fitted: Fitted, image: Tensor) -> float:
        """mse + lmbda * bpp of the coded images."""
        mse = float((fitted.x_hat - image.cpu()).square().mean())
        return mse + self.lmbda * 8 * sum(map(len, fitted.strings)) / image[0].numel()

    def _checkpoint_of(self, candidate: int) -> Path | None:
        if self.checkpoint is None or candidate == 0:
            return None if self.checkpoint is None else Path(self.checkpoint)
        return Path(f"{self.checkpoint}.{candidate}")

    def _run(self, fit: Fit, checkpoint: Path | None) -> None:
        if checkpoint is None:
            return self._run_with_bar(fit, lambda: None)
        keeper = Checkpoint(checkpoint, fit, self.seed)
        if fit.done:  # killed while its weights were rounded
            return None
        with held_interrupt() as held:

            def keep() -> None:
                if held():
                    keeper.save()
                    raise KeyboardInterrupt
                keeper()

            self._run_with_bar(fit, keep)
            keeper.save()
            if held():
                raise KeyboardInterrupt

    def _run_with_bar(self, fit: Fit, keep: Callable[[], None]) -> None:
        start = min(fit.step_count, fit.steps)
        with Meter(self.preset.name, fit.steps, done=start, show=self.show_progress) as meter:

            def report(progress: Progress) -> None:
                meter.at(
                    progress.step,
                    f"loss {progress.loss:.3e}, latents {progress.bpp:.3f} bpp, {progress.psnr_db:.2f} dB, "
                    f"{progress.seconds_left:.0f} s left",
                )
                keep()

            fit.run(report, every=1 if fit.x.device.type == "cpu" else 20)

    def compress(self, x: Tensor) -> dict[str, Any]:
        """Strings and shape of images (B, 3, H, W) in [0, 1]; every byte that a decoder needs."""
        fitted = self.fit(x)
        strings = [[f.strings[part] for f in fitted] for part in (0, 1)]
        return {"strings": strings, "shape": torch.Size(x.shape[2:])}

    @full_precision()
    def decompress(self, strings: Sequence[Sequence[bytes]], shape: Sequence[int]) -> dict[str, Tensor]:
        """The images that `compress` coded, {"x_hat": (B, 3, H, W)}.

        Raises:
            BitstreamError: strings that no encoder wrote for that shape.
        """
        if len(strings) != 2 or len(strings[0]) != len(strings[1]) or len(shape) != 2:
            raise BitstreamError(
                f"{[len(part) for part in strings]} strings and shape {tuple(shape)}; C3 has one string of "
                "nets and one of latents for each image, and (H, W)"
            )
        images = [decode_image(pair, tuple(shape)) for pair in zip(*strings)]
        return {"x_hat": torch.stack(images).to(self._where.device)}

    @full_precision()
    def forward(self, x: Tensor) -> dict[str, Any]:
        """Fits, and returns the reconstruction and likelihoods with the same bits as the strings.

        Returns:
            x_hat (B, 3, H, W); likelihoods: `y` (B, latents), and `nets` (B, bytes), where each byte counts
            8 bits, and padding to the longest string of the batch 0.
        """
        fitted = self.fit(x)
        latents = [latent_likelihoods(f.nets, f.grids) for f in fitted]
        nets = [torch.full((len(f.strings[0]),), 2.0**-8) for f in fitted]
        return {
            "x_hat": torch.stack([f.x_hat for f in fitted]).to(x.device),
            "likelihoods": {
                "y": pad_sequence(latents, batch_first=True, padding_value=1.0).to(x.device),
                "nets": pad_sequence(nets, batch_first=True, padding_value=1.0).to(x.device),
            },
        }


class C3Fast(C3):
    """C3 in 2 000 steps."""

    preset_name = "c3-fast"


class C3Paper(C3):
    """C3 as in the paper; see `config` for the departures."""

    preset_name = "c3-paper"


ARCHITECTURES: dict[str, type[C3]] = {"c3": C3, "c3-fast": C3Fast, "c3-paper": C3Paper}


def _coded(fit: Fit) -> list[Fitted]:
    plane = fit.plane_hat().cpu()
    found = []
    for i, nets in enumerate(round_nets(fit)):
        grids = [
            np.ascontiguousarray(grid[0].numpy().astype(np.int32))
            for grid in fit.grid_plane.grids(plane[i : i + 1])
        ]
        strings = encode_image(nets, grids)
        found.append(Fitted(nets, grids, strings, reconstruct(nets, grids), fit.step_count))
    return found
