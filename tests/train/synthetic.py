# SPDX-License-Identifier: Apache-2.0
"""Pictures whose spectrum falls like that of photographs (amplitude about 1/frequency), with correlated
colours and a few sharp edges."""

from __future__ import annotations

import torch


def synthetic_photo(size: int, seed: int) -> torch.Tensor:
    """A picture of shape (3, size, size) in [0, 1] with an amplitude spectrum of about 1/f."""
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.fft.fftfreq(size)[:, None] ** 2 + torch.fft.rfftfreq(size)[None] ** 2
    spectrum = torch.fft.rfft2(torch.randn(3, size, size, generator=generator))
    noise = torch.fft.irfft2(spectrum / (frequency.sqrt() + 1 / size) ** 1.3, s=(size, size))
    mix = torch.tensor([[1.0, 0.3, 0.1], [1.0, -0.1, -0.2], [1.0, -0.3, 0.2]])
    picture = torch.einsum("ck,khw->chw", mix, noise)
    picture = picture / picture.std() * 0.15 + 0.5
    top, left, side = torch.randint(size // 8, size // 2, (3,), generator=generator).tolist()
    picture[:, top : top + side, left : left + side] *= 0.6
    return picture.clamp(0, 1)
