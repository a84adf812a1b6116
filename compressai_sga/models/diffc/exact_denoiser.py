# SPDX-License-Identifier: Apache-2.0
"""DiffC's network as a denoiser that gives the same numbers on two machines, for images of any size.

A coder needs the same bits at both ends. On the CPU, `diffusion.exact` gives them for any number of threads.
Images larger than the network's window are processed in windows that overlap by a quarter and are averaged
(`diffusion.tiling`), a few at a time, always in the same order. x_hat is rounded to multiples of 2^-10, for
our network a sixteenth of a grey level. On a GPU, cuDNN is asked for deterministic algorithms without TF32.
Results should then agree for the same GPU, driver and versions, which the tag records; this was not tried.

In:  z (1, C, H, W) float64, log-SNR a float64 scalar. Out: x_hat, float64 multiples of 2^-10.
Fails with ``ShapeError`` for an image that is smaller than a network can take.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ...diffusion.exact import arithmetic, exact_cpu
from ...diffusion.tiling import blend
from ...errors import ShapeError
from ...precision import fixed_algorithms, full_float32

__all__ = ["ExactDenoiser", "machine_tag", "module_tag"]

_UNIT = 2.0**-10
_BATCH = 4


class ExactDenoiser:
    """The denoiser; see the head of the file.

    Args:
        predict: x_hat (b, C, w, w) from windows of z, float32, and their level.
        window: side of the images that the network was trained on, px.
        multiple: sides of windows are multiples of this, px.
        device: of the network.
    """

    def __init__(
        self,
        predict: Callable[[Tensor, Tensor], Tensor],
        *,
        window: int,
        multiple: int,
        device: torch.device,
    ) -> None:
        self._predict, self._window, self._multiple = predict, window, multiple
        self._device = device

    def window_of(self, height: int, width: int) -> int:
        """Side of the windows for an image: the network's, or the largest that fits into the image.

        Raises:
            ShapeError: none fits.
        """
        side = min(height, width, self._window) // self._multiple * self._multiple
        if side < 1:
            raise ShapeError(
                f"the image has {height} x {width} px; this network takes {self._multiple} px and more on "
                "both sides: pad the image"
            )
        return side

    @torch.no_grad()
    def __call__(self, z: Tensor, log_snr: Tensor) -> Tensor:
        window = self.window_of(*z.shape[2:])

        def function(part: Tensor) -> Tensor:
            return self._predict(part, log_snr)

        with _deterministic(self._device):
            seen = z.to(self._device, torch.float32)
            x_hat = blend(function, [seen], window=window, overlap=window // 4, batch=_BATCH)
        return (torch.round(x_hat.double() / _UNIT) * _UNIT).to(z.device)


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    if device.type == "cpu":
        with exact_cpu():
            yield
        return
    with full_float32(), fixed_algorithms():
        yield


def machine_tag(device: torch.device) -> int:
    """CRC-32 of what a network's last bits depend on: torch's version, and how the processor rounds sums."""
    if device.type == "cpu":
        facts = [str(arithmetic())]
    else:
        facts = [
            torch.cuda.get_device_name(device),
            str(torch.version.cuda),
            str(torch.backends.cudnn.version()),
        ]
    return zlib.crc32("|".join([torch.__version__.split("+")[0], *facts]).encode())


def module_tag(module: torch.nn.Module) -> int:
    """CRC-32 of a module's tensors, in the order of their names."""
    crc = 0
    for name, value in sorted(module.state_dict().items()):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(value.detach().cpu().contiguous().numpy().tobytes(), crc)
    return crc
