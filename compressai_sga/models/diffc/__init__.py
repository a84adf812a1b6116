# SPDX-License-Identifier: Apache-2.0
"""DiffC: compression with a diffusion model itself.

model           `DiffCAncestral` and `DiffCFlow` as CompressAI models
chain           the process, for any denoiser
costs           what a step costs, and which levels to stop at
channel         how a step is sent
codec, stream   one image to bytes and back; the bytes
exact_denoiser  the same numbers at both ends
network         our denoiser; `pixel_model`: it or one of diffusers
"""

from .model import ARCHITECTURES, QUALITY_BPP, DiffC, DiffCAncestral, DiffCFlow
from .network import PixelDenoiser

__all__ = ["ARCHITECTURES", "QUALITY_BPP", "DiffC", "DiffCAncestral", "DiffCFlow", "PixelDenoiser"]
