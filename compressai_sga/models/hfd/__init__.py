# SPDX-License-Identifier: Apache-2.0
"""HFD: a diffusion model draws the details that a codec has lost.

model      `HFD`: any CompressAI model, and a decoder that draws details
sampling   the draw: windows, noise, seed
network    the denoiser
"""

from .model import ARCHITECTURES, HFD
from .network import ResidualDenoiser

__all__ = ["ARCHITECTURES", "HFD", "ResidualDenoiser"]
