# SPDX-License-Identifier: Apache-2.0
"""C3 (Kim et al. 2024): a codec that is fitted to one image, with a bitstream that decodes exactly.

The files:
    config, macs                      architectures, presets, their cost
    defaults, network                 initial weights from the zoo; the nets on planes of all grids
    fit                               the encoder: latents and nets by gradient descent, weights rounded
    weights, image_codec              the two strings
    contexts, integer, tables,        latents, bit for bit the same everywhere
        latent_codec, native
    model                             CompressAI's interface
"""

from typing import TYPE_CHECKING

from ... import lazy

if TYPE_CHECKING:
    from .model import ARCHITECTURES, C3, C3Fast, C3Paper

__all__ = ["ARCHITECTURES", "C3", "C3Fast", "C3Paper"]

__getattr__ = lazy.attributes(__name__, dict.fromkeys(__all__, "model"))
