# SPDX-License-Identifier: Apache-2.0
"""DiffC: compression with a diffusion model alone.

model           `DiffCAncestral` and `DiffCFlow` as CompressAI models
process         the diffusion that is sent, for any denoiser
costs           the bits of a step, and the levels to stop at
channel         how a step is sent
codec, stream   one image to bytes and back; the bytes
exact_denoiser  the same numbers at both ends
network         our denoiser; `pixel_diffusion`: ours or one of `diffusers`
"""

from .model import ARCHITECTURES, QUALITY_BPP, DiffC, DiffCAncestral, DiffCFlow
from .network import PixelDenoiser

__all__ = ["ARCHITECTURES", "QUALITY_BPP", "DiffC", "DiffCAncestral", "DiffCFlow", "PixelDenoiser"]
