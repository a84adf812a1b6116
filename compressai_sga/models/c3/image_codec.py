# SPDX-License-Identifier: Apache-2.0
"""A C3 image as two strings: the nets, coded by `weights`, and the latents, coded by `latent_codec`.

    header, latents = encode_image(nets, grids)
    decode_image([header, latents], (H, W))         # (3, H, W) float32 in [0, 1]

All bits are in the strings; the shape that is given with them must equal the one inside. The latents are the
same on every machine; the image, computed in float32, may differ in its last bits.

In:  `Nets`; int32 grids. Out: bytes; an image.
Fails with ``BitstreamError`` on strings that no encoder wrote, after work and memory in proportion to the
shape; ``ValueError`` on wrong arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...errors import BitstreamError
from . import native
from .config import Architecture
from .contexts import grid_sizes
from .latent_codec import Backend, bits_of, decode_latents, encode_latents
from .network import synthesise, upsample
from .weights import Nets, decode_nets, encode_nets

__all__ = ["Decoded", "decode_image", "decode_strings", "encode_image", "latent_likelihoods", "reconstruct"]


class Decoded(NamedTuple):
    """The content of the two strings."""

    nets: Nets
    grids: list[np.ndarray]


def encode_image(
    nets: Nets, grids: Sequence[np.ndarray], *, backend: Backend = "auto"
) -> tuple[bytes, bytes]:
    """Encodes an image as two strings, and decodes both once as a check before it returns.

    Args:
        nets: of the image.
        grids: int32, as `contexts.grid_sizes` says, the finest first.
        backend: of the latents' coder and decoder.
    """
    return encode_nets(nets), encode_latents(grids, nets.entropy(), nets.architecture.taps, backend=backend)


def decode_strings(strings: Sequence[bytes], shape: tuple[int, int], *, backend: Backend = "auto") -> Decoded:
    """Nets and latents of one image.

    Args:
        strings: header with nets, latents.
        shape: (height, width), pixels.
        backend: of the decoder.

    Raises:
        BitstreamError: no encoder wrote this for that shape.
    """
    if len(strings) != 2:
        raise BitstreamError(f"{len(strings)} strings; a C3 image has 2, its nets and its latents: give both")
    nets = decode_nets(strings[0])
    if nets.size != tuple(int(side) for side in shape):
        raise BitstreamError(f"nets: the image has size {nets.size}, but shape {tuple(shape)} was given")
    try:
        entropy = nets.entropy()
    except ValueError as error:
        raise BitstreamError(f"nets: {error}; no encoder writes this: the file is damaged") from None
    a = nets.architecture
    sizes = grid_sizes(*nets.size, a.grids, a.first)
    return Decoded(nets, decode_latents(strings[1], sizes, entropy, a.taps, backend=backend))


def decode_image(strings: Sequence[bytes], shape: tuple[int, int], *, backend: Backend = "auto") -> Tensor:
    """The image (3, H, W), float32 in [0, 1]; arguments and errors as `decode_strings`."""
    return reconstruct(*decode_strings(strings, shape, backend=backend), backend=backend)


def reconstruct(nets: Nets, grids: Sequence[np.ndarray], *, backend: Backend = "auto") -> Tensor:
    """The image (3, H, W) of nets and latents, float32 in [0, 1]."""
    arrays = nets.arrays()
    if native.AVAILABLE and backend != "python":
        image = torch.from_numpy(
            native.synthesise(
                [grid.astype(np.float32) for grid in grids],
                _layers(arrays, nets.architecture),
                nets.size,
                doublings=arrays.get("upsampling.weight"),
                first=nets.architecture.first,
                portable=backend == "portable",
            )
        )
    else:
        planes = [torch.from_numpy(grid.astype(np.float32))[None] for grid in grids]
        tensors = {name: torch.from_numpy(array)[None] for name, array in arrays.items()}
        with torch.no_grad():
            channels = upsample(tensors, planes, nets.size, nets.architecture)
            image = synthesise(tensors, channels, nets.architecture)[0]
    # Wild weights of a hostile file may give NaN.
    return image.nan_to_num_(nan=0.0).clamp_(0, 1)


def _layers(arrays: dict[str, np.ndarray], a: Architecture) -> list[native.FloatLayer]:
    """The synthesis as `native.synthesise` takes it."""
    found, last = [], len(a.synthesis_hidden)
    for i in range(last + 1):
        kind = a.synthesis_activation if i < last else "none"
        skip = arrays["synthesis.skip"] if a.synthesis_skip and i == last else None
        weight = arrays[f"synthesis.{i}.weight"][:, :, None, None]
        found.append(native.FloatLayer(weight, arrays[f"synthesis.{i}.bias"], kind, skip=skip))
    for i in range(a.refinements):
        kind = a.refinement_activation if i < a.refinements - 1 else "none"
        weight, bias = arrays[f"refinement.{i}.weight"], arrays[f"refinement.{i}.bias"]
        found.append(native.FloatLayer(weight, bias, kind, residual=True))
    return found


def latent_likelihoods(nets: Nets, grids: Sequence[np.ndarray]) -> Tensor:
    """(latents,) likelihoods whose -log2 add up to the latents' code length.

    Each is the geometric mean of its grid, finest grid first.
    """
    bits = bits_of(grids, nets.entropy(), nets.architecture.taps)
    return torch.cat(
        [torch.full((grid.size,), 2.0 ** (-total / grid.size)) for grid, total in zip(grids, bits)]
    )
