# SPDX-License-Identifier: Apache-2.0
"""PCA initialisation: an untrained codec that is already a truncated block transform.

PyTorch's default initialisation shrinks the signal at every stride-2 layer, so the latents start
near zero, round to zero, and training idles for thousands of steps. Here each stage of the
analysis transform g_a (5x5 convolutions of stride 2 with GDN or ReLU between) takes 2x2 blocks of
its own input and projects them on their principal components; the mirrored stage of g_s applies
the transposed basis. The kernel taps (2, 3) x (2, 3) of such a convolution meet exactly the block
(2i, 2i+1), and the same taps of the transposed convolution write it back.

The hyperprior has the same problem, and more severely: a z of 0.1 is lost by rounding, h_s learns nothing
from it, and once the rate has removed z, it never comes back. So the layers of the hyperprior are scaled one
after the other to give outputs of unit variance on the latents (Mishkin & Matas 2016, "All you need is a good
init"), and z gets the standard deviation `Z_STD`.

In:  a stock CompressAI model with `g_a`, `g_s` as ``nn.Sequential`` of 5x5 stride-2 layers, and
     images of shape (batch, 3, H, W) in [0, 1]. Changed in place.
Out: quantisation with step 1 in the latent is quantisation with step `delta` in an orthonormal
     transform of the image; the scales that the hyperprior predicts start at the latents'
     standard deviations, its means near 0.
Fails with ``ValueError`` on transforms of another shape.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["initialise_from_pca", "step_for_lmbda", "unit_variance"]

INNER_SCALE = 0.25  # keeps activations below about 1, where GDN starts as the identity
Z_STD = 2.0  # a few symbols a number: enough to be heard through rounding
QUIET = 1e-3  # of the default scale, for the decoder's unused channels: louder drowns the picture


def step_for_lmbda(lmbda: float) -> float:
    """Quantisation step of an orthonormal transform of [0, 1] images that suits `lmbda`.

    High-rate theory gives step ~ 1/sqrt(lmbda); the constant was found on photographs.
    """
    return 0.175 * math.sqrt(0.013 / lmbda)


def _blocks(x: Tensor) -> Tensor:
    """2x2 blocks as vectors: (B, C, H, W) to (B * H/2 * W/2, C * 4), C outermost."""
    patches = nn.functional.unfold(x, kernel_size=2, stride=2)
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


@torch.no_grad()
def initialise_from_pca(model: nn.Module, images: Tensor, lmbda: float) -> None:
    """Set g_a, g_s (and the bias of the predicted scales) of `model` as described at the head of the file."""
    analysis = [m for m in model.g_a if isinstance(m, nn.Conv2d)]
    synthesis = [m for m in model.g_s if isinstance(m, nn.ConvTranspose2d)][::-1]
    kernel_ok = all(m.kernel_size == (5, 5) and m.stride == (2, 2) for m in analysis + synthesis)
    if len(analysis) != len(synthesis) or not analysis or not kernel_ok:
        raise ValueError(
            "PCA initialisation needs g_a and g_s of equally many 5x5 convolutions with stride 2; "
            "train this architecture with --init default"
        )
    last = len(analysis) - 1
    outer_scale = 1 / (INNER_SCALE * step_for_lmbda(lmbda))
    channels = images.shape[1]
    inputs = images
    for level, (conv, deconv) in enumerate(zip(analysis, synthesis, strict=True)):
        signal = inputs[:, :channels]
        mean = signal.mean((0, 2, 3))
        vectors = _blocks(signal - mean[:, None, None])
        count = min(conv.out_channels, vectors.shape[1])
        _, basis = torch.linalg.eigh(vectors.T @ vectors)
        basis = basis.flip(1)[:, :count].T.reshape(count, channels, 2, 2)
        scale = INNER_SCALE if level == 0 else outer_scale if level == last else 1.0

        conv.weight.mul_(QUIET if level == last else 0.1)
        conv.weight[:count] = 0
        conv.weight[:count, :channels, 2:4, 2:4] = basis * scale
        conv.bias.zero_()
        conv.bias[:count] = -(basis * mean[:, None, None]).sum((1, 2, 3)) * scale

        deconv.weight.mul_(QUIET)
        deconv.weight[:count, :channels, 2:4, 2:4] = basis / scale
        deconv.bias.zero_()
        deconv.bias[:channels] = mean

        inputs = conv(inputs)
        if level != last:
            inputs = model.g_a[2 * level + 1](inputs)  # the activation between two stages
        channels = count

    hyper = model.latent_codec["hyper"] if hasattr(model, "latent_codec") else model
    if hasattr(hyper, "h_a"):
        z = unit_variance(hyper.h_a, inputs, last_std=Z_STD)
        unit_variance(hyper.h_s, z.round())
    scales = inputs.std((0, 2, 3)).clamp_min(0.2)
    for head, part in _scale_heads(model, scales):
        last = [m for m in head if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))][-1]
        last.weight.mul_(0.1)
        last.bias.zero_()
        last.bias[: len(part)] = part


@torch.no_grad()
def unit_variance(layers: nn.Sequential, x: Tensor, last_std: float = 1.0) -> Tensor:
    """Scale each convolution so that its outputs on `x` have standard deviation 1, the last `last_std`.

    Returns:
        The output of the scaled layers on `x`.
    """
    convolutions = [m for m in layers if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    for layer in layers:
        if layer in convolutions:
            layer.bias.zero_()
            layer.weight.mul_((last_std if layer is convolutions[-1] else 1.0) / layer(x).std())
        x = layer(x)
    return x


def _scale_heads(model: nn.Module, scales: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """The networks that predict scales (and means), each with the scales of its channels."""
    if hasattr(model, "latent_codec"):
        groups = model.latent_codec["y"]
        parts = scales.split(groups.groups)
        return [(groups[f"y{k}"].entropy_parameters, part) for k, part in enumerate(parts)]
    head = getattr(model, "entropy_parameters", None) or getattr(model, "h_s", None)
    return [] if head is None else [(head, scales)]
