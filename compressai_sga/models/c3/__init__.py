# SPDX-License-Identifier: Apache-2.0
"""C3 (Kim et al. 2024): a codec that is fitted to one image, with a bitstream that decodes exactly.

The files:
    config, macs                      architectures, presets, their cost
    start, defaults                   first weights, of the image alone or of the zoo
    canvas, network, fit, finish      the encoder: latents and nets by gradient descent
    adam, soap, memory                its optimisers, and what keeps it fast on a CPU
    steps                             weights rounded
    weights, image_codec              the two strings
    contexts, integer, tables,        latents, bit for bit the same everywhere
        latent_codec, native
    model, checkpoint                 CompressAI's interface; a fit that was killed goes on
"""

from .model import ARCHITECTURES, C3, C3Fast, C3Paper

__all__ = ["ARCHITECTURES", "C3", "C3Fast", "C3Paper"]
