# SPDX-License-Identifier: Apache-2.0
"""Pretrained models of `diffusers` as denoisers: pixel models and latent models.

A model was trained on a list of noise levels: its scheduler's `alphas_cumprod`, alpha^2 at the timesteps
0 ... T - 1. Between two of them, the timestep that the network gets is interpolated linearly in the log-SNR;
outside them it is the first or the last one. Networks with a table of timesteps get the nearest timestep.
z is variance preserving, as in the rest of this package; "epsilon", "v_prediction" and "sample" are our
"eps", "v" and "x". x_hat is clipped where the scheduler's own configuration clips it.

    model = load("folder or hub id")             # a pipeline's folder, or a UNet2DModel's with its scheduler
    x = model.encode(image)                      # pixels in [-1, 1], or scaled latents
    x_hat = model(z, log_snr)                    # a `parametrisations.Denoiser`
    image = model.decode(x_hat)

In:  images (B, C, H, W) in [0, 1], H and W multiples of `model.multiple`.
Needs the package `diffusers` (the extra `diffusion`), which only `load` imports. Weights are read from
safetensors only, because unpickling a file can run any code in it.
Fails with ``SgaError`` where the extra or a file is missing, ``UnsupportedModelError`` for another kind of
model, ``ShapeError`` for an image of the wrong size; each says what to do.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SgaError, ShapeError, UnsupportedModelError
from .parametrisations import Prediction, convert

__all__ = ["Pretrained", "load"]

_PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}
_UNETS = ("UNet2DModel", "UNet2DConditionModel")
_NO_SIGNAL = -30.0  # log-SNR that stands for alphas_cumprod = 0, of schedules with a terminal SNR of 0


class Pretrained(nn.Module):
    """A frozen model of `diffusers`; a `Denoiser` when called. Made by `load`.

    Attributes:
        log_snrs: (T,) float64 on the CPU, falling: the levels of the timesteps 0 ... T - 1.
        prediction: what the network says.
        limit: of |x_hat|, or None.
        channels: of z.
        multiple: H and W of an image are multiples of this, px.
        factor: pixels to one element of z in each direction: 1 for pixel models.
    """

    def __init__(
        self,
        unet: nn.Module,
        vae: nn.Module | None,
        scheduler: Any,
        *,
        context: Tensor | None = None,
        class_label: int | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.vae = unet, vae
        self.log_snrs = _levels(scheduler)
        self.prediction = _PREDICTIONS[scheduler.config.get("prediction_type", "epsilon")]
        clips = scheduler.config.get("clip_sample", False)
        self.limit = float(scheduler.config.get("clip_sample_range", 1.0)) if clips else None
        self.channels = int(unet.config["in_channels"])
        self.factor = 1 if vae is None else 2 ** (len(vae.config["block_out_channels"]) - 1)
        self.multiple = self.factor * 2 ** (len(unet.config["block_out_channels"]) - 1)
        self.class_label = class_label
        self._whole_timesteps = unet.config.get("time_embedding_type") == "learned"
        self.register_buffer("context", context, persistent=False)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Pretrained:
        """Stays in evaluation mode, whatever the model around it does."""
        return super().train(False)

    def timestep(self, log_snr: float | Tensor) -> Tensor:
        """The timestep that the network gets, float64, shape of `log_snr`; interpolated in log-SNR."""
        log_snr = torch.as_tensor(log_snr, dtype=torch.float64).cpu()
        rising, last = self.log_snrs.flip(0), len(self.log_snrs) - 1
        above = torch.searchsorted(rising, log_snr).clamp(1, last)
        low, high = rising[above - 1], rising[above]
        timestep = last - (above - 1 + ((log_snr - low) / (high - low)).clamp(0, 1))
        return timestep.round() if self._whole_timesteps else timestep

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        if z.dim() != 4 or z.shape[1] != self.channels:
            raise ShapeError(f"z has the shape {tuple(z.shape)}; this model takes (B, {self.channels}, h, w)")
        self._check_size(z.shape[-2] * self.factor, z.shape[-1] * self.factor)
        timestep = self.timestep(log_snr)
        timestep = (timestep.long() if self._whole_timesteps else timestep.float()).to(z.device)
        arguments: dict[str, Any] = {"timestep": timestep.expand(len(z))}
        if self.class_label is not None:
            arguments["class_labels"] = torch.full((len(z),), self.class_label, device=z.device)
        if type(self.unet).__name__ == "UNet2DConditionModel":
            arguments["encoder_hidden_states"] = (
                None if self.context is None else self.context.to(z.dtype).expand(len(z), -1, -1)
            )
        # Models that learned a variance say it in the second half of the channels.
        said = self.unet(z, **arguments).sample[:, : self.channels]
        x_hat = convert(said, z, log_snr, source=self.prediction, to="x")
        return x_hat if self.limit is None else x_hat.clamp(-self.limit, self.limit)

    def encode(self, x: Tensor) -> Tensor:
        """The signal that is diffused: 2 x - 1, or the mode of the autoencoder's latents, scaled."""
        self._check_size(*x.shape[-2:])
        if self.vae is None:
            return 2 * x - 1
        mean, scale = self._latent_scale(x)
        return (self.vae.encode(2 * x - 1).latent_dist.mode() - mean) * scale

    def decode(self, x_hat: Tensor) -> Tensor:
        """An image in [0, 1] from a clean signal; the inverse of `encode`, up to the autoencoder's error."""
        if self.vae is not None:
            mean, scale = self._latent_scale(x_hat)
            x_hat = self.vae.decode(x_hat / scale + mean).sample
        return ((x_hat + 1) / 2).clamp(0, 1)

    def _latent_scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.vae.config
        mean = config.get("latents_mean") or [config.get("shift_factor") or 0.0]
        std = config.get("latents_std") or [1.0]
        mean, std = (torch.tensor(values).to(like).reshape(1, -1, 1, 1) for values in (mean, std))
        return mean, config.get("scaling_factor", 1.0) / std

    def _check_size(self, height: int, width: int) -> None:
        if height % self.multiple or width % self.multiple:
            raise ShapeError(
                f"the image has {height} x {width} px; this model takes multiples of {self.multiple}: pad "
                "it or cut it into tiles"
            )


def load(
    source: str | os.PathLike[str],
    *,
    context: Tensor | None = None,
    class_label: int | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Pretrained:
    """Reads a model from a folder or from the Hugging Face hub; float32, on the CPU.

    Args:
        source: folder, or hub id `owner/name`; holds `unet/`, `scheduler/` and, for a latent model, `vae/`,
            as pipelines are saved, or a U-Net and its scheduler_config.json side by side.
        context: (tokens, width) or (1, tokens, width), what a text-conditional U-Net attends to; without a
            text, pass the embedding of the empty prompt.
        class_label: for a class-conditional U-Net.
        revision, cache_dir: of the hub.
        local_files_only: no connection is made; a hub id must be in the cache.

    Raises:
        SgaError: `diffusers` is not installed, or a file is missing or unreadable.
        UnsupportedModelError: the model is of another kind, or needs a condition that was not given.
    """
    diffusers = _diffusers()
    hub = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only}
    folder = _configurations(source, hub)
    unet_at, unet_config = _configuration(source, folder, "unet", "config.json")
    _, scheduler_config = _configuration(source, folder, "scheduler", "scheduler_config.json")
    for other in ("vqvae", "movq", "vqgan"):  # without it such a model would pass for a pixel model
        if (folder / other / "config.json").is_file():
            raise UnsupportedModelError(
                f"{str(source)!r} has a {other}; the supported autoencoder is AutoencoderKL"
            )
    latent = (folder / "vae" / "config.json").is_file()
    vae_config = _configuration(source, folder, "vae", "config.json")[1] if latent else None

    context = _check_network(source, unet_config, vae_config, context, class_label)
    scheduler = _scheduler(source, diffusers, scheduler_config)

    def weights(name: str, subfolder: str | None) -> nn.Module:
        options = {"use_safetensors": True, "low_cpu_mem_usage": False, "torch_dtype": torch.float32, **hub}
        try:
            return getattr(diffusers, name).from_pretrained(str(source), subfolder=subfolder, **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise SgaError(
                f"the weights of {name} in {str(source)!r} could not be read ({error}); they must be "
                "there as safetensors"
            ) from error

    unet = weights(unet_config["_class_name"], unet_at)
    vae = weights("AutoencoderKL", "vae") if latent else None
    return Pretrained(unet, vae, scheduler, context=context, class_label=class_label)


def _diffusers() -> ModuleType:
    try:
        import diffusers
    except ImportError as error:
        raise SgaError(
            f"pretrained diffusion models need the package diffusers ({error}); install the extra: "
            'pip install ".[diffusion]"'
        ) from error
    return diffusers


def _configurations(source: str | os.PathLike[str], hub: dict[str, Any]) -> Path:
    """A local folder with the JSON files of the model."""
    if os.path.isdir(source):
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=["*.json"], **hub))
    except (OSError, ValueError) as error:  # what the hub's client raises derives from these
        cure = "download it first, or give" if hub["local_files_only"] else "check the id, or give"
        raise SgaError(
            f"{str(source)!r} is not a folder, and no files of that name came from the hub ({error}); "
            f"{cure} a folder"
        ) from error


def _configuration(
    source: str | os.PathLike[str], folder: Path, part: str, name: str
) -> tuple[str | None, dict[str, Any]]:
    """The subfolder that a part of the model lies in (None: the folder itself), and its configuration."""
    for subfolder in (part, None):
        path = folder / (subfolder or "") / name
        if path.is_file():
            try:
                config = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise SgaError(f"{path} is not JSON ({error}); fetch the model again") from error
            if "_class_name" in config:
                return subfolder, config
    others = sorted(path.parent.name for path in folder.glob("*/config.json"))
    raise UnsupportedModelError(
        f"{str(source)!r} has no {part}: neither {part}/{name} nor {name} names a class of diffusers"
        + (f"; it has {', '.join(others)}" if others else "")
        + ". Supported: a UNet2DModel or UNet2DConditionModel with its scheduler, as diffusers saves them"
    )


def _check_network(
    source: str | os.PathLike[str],
    unet: dict[str, Any],
    vae: dict[str, Any] | None,
    context: Tensor | None,
    class_label: int | None,
) -> Tensor | None:
    """Raises for models that cannot be called as a denoiser; the context in shape (1, tokens, width)."""

    def refuse(what: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{str(source)!r}: {what}")

    kind = unet["_class_name"]
    if kind not in _UNETS:
        raise refuse(f"the network is a {kind}; supported are {' and '.join(_UNETS)}")
    if vae is not None and vae["_class_name"] != "AutoencoderKL":
        raise refuse(f"the autoencoder is a {vae['_class_name']}; supported is AutoencoderKL")
    channels = int(unet.get("in_channels", 4 if kind == "UNet2DConditionModel" else 3))
    # A latent model without its autoencoder would be taken for a pixel model.
    signal = 3 if vae is None else int(vae.get("latent_channels", 4))
    if channels != signal and not (vae is None and channels == 1):
        raise refuse(
            f"the U-Net takes {channels} channels and the signal has {signal}; "
            + ("the vae is missing" if vae is None else "models with image conditions are not supported")
        )
    if unet.get("addition_embed_type") is not None or unet.get("encoder_hid_dim_type") is not None:
        raise refuse("the U-Net takes more conditions than a context (SDXL and the like): not supported")
    needs_label = unet.get("num_class_embeds") is not None or unet.get("class_embed_type") is not None
    if needs_label and (class_label is None or unet.get("class_embed_type") not in (None, "timestep")):
        raise refuse("the U-Net is class-conditional; give class_label (only labels are supported)")
    if not needs_label and class_label is not None:
        raise refuse(f"class_label is {class_label}, but the U-Net knows no classes; leave it out")

    blocks = [*unet.get("down_block_types", ("CrossAttn",)), *unet.get("up_block_types", ("CrossAttn",))]
    attends = kind == "UNet2DConditionModel" and any(
        "CrossAttn" in str(block) for block in [*blocks, unet.get("mid_block_type", "CrossAttn")]
    )
    if not attends:
        if context is not None:
            raise refuse("context is given, but the U-Net takes none; leave it out")
        return None
    width = unet.get("cross_attention_dim", 1280)
    if context is None:
        raise refuse(
            f"the U-Net attends to a text; give context=..., of shape (tokens, {width}): to go without a "
            "text, the embedding of the empty prompt"
        )
    context = context if context.dim() == 3 else context[None]
    if context.dim() != 3 or len(context) != 1 or context.shape[-1] != width:
        raise ShapeError(
            f"context has the shape {tuple(context.shape)}; it must be (1, tokens, {width}) for this U-Net"
        )
    return context


def _scheduler(source: str | os.PathLike[str], diffusers: ModuleType, config: dict[str, Any]) -> Any:
    kind = getattr(diffusers, config["_class_name"], None)
    scheduler = None if kind is None else kind.from_config(config)
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise UnsupportedModelError(
            f"{str(source)!r}: the scheduler is a {config['_class_name']}, which has no alphas_cumprod in "
            f"diffusers {diffusers.__version__}; supported are variance-preserving ones such as "
            "DDPMScheduler and DDIMScheduler"
        )
    prediction = scheduler.config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise UnsupportedModelError(
            f"{str(source)!r}: the prediction_type is {prediction!r}; supported are {', '.join(_PREDICTIONS)}"
        )
    return scheduler


def _levels(scheduler: Any) -> Tensor:
    """The log-SNRs of the timesteps 0 ... T - 1."""
    share = scheduler.alphas_cumprod.detach().cpu().double()
    log_snrs = (share.log() - torch.log1p(-share)).clamp_min(_NO_SIGNAL)
    if len(log_snrs) < 2 or not bool((log_snrs.diff() < 0).all() and log_snrs.isfinite().all()):
        raise UnsupportedModelError(
            "the scheduler's alphas_cumprod do not fall from timestep to timestep within (0, 1), so a "
            "log-SNR does not determine a timestep; take a model with another scheduler"
        )
    return log_snrs
