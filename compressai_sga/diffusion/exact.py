# SPDX-License-Identifier: Apache-2.0
"""The same bits from a network on the CPU, whatever the number of threads and the batch.

A decoder whose network controls an entropy coder must compute the encoder's numbers to the last bit. Measured
with torch 2.15 and AVX-512: oneDNN chooses its convolutions by batch and threads, NNPACK takes over from a
batch of 16, MKL divides a matrix product between threads on Intel processors, and torch's vectorised exp
(SiLU, sigmoid, softmax) rounds differently at the end of a thread's share. What remains is one thread with
torch's own convolutions (a matrix product for each image):

    with exact_cpu():    # unet.UNet without attention, one log-SNR and one label for the batch: any batch
                         # any other network: keep the batch at one size, best 1

This does not cover other CPUs or other versions of torch: store both in the file's header, round before
coding, and check. It costs 10 to 20 % of the speed. The settings apply to the whole process: Python threads
that use `exact_cpu` take turns, and all other threads run under these settings meanwhile.
"""

from __future__ import annotations

import functools
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import functional

__all__ = ["arithmetic", "exact_cpu"]


_turn = threading.RLock()  # else a thread that ends would put back what another still needs


@contextmanager
def exact_cpu() -> Iterator[None]:
    """One thread of torch, and oneDNN and NNPACK off; everything is put back afterwards."""
    with _turn:
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            with _without_onednn(), torch.backends.nnpack.flags(enabled=False):
                yield
        finally:
            torch.set_num_threads(before)


@functools.lru_cache(maxsize=1)
def arithmetic() -> int:
    """CRC-32 of a convolution and a matrix product: equal on machines that round them alike.

    The name of the processor or its instruction set is not enough: with the same instruction set, MKL
    computes different matrix products on Intel and on AMD.
    """
    numbers = (torch.arange(64 * 64 * 9) * 7919 % 2003).float() / 1001 - 1
    image, kernels = numbers[: 64 * 256].reshape(1, 64, 16, 16), numbers.reshape(64, 64, 3, 3)
    with exact_cpu():
        results = (
            functional.conv2d(image, kernels, padding=1),
            image.reshape(64, 256) @ kernels.reshape(256, -1),
        )
    crc = 0
    for result in results:
        crc = zlib.crc32(result.contiguous().numpy().tobytes(), crc)
    return crc


@contextmanager
def _without_onednn() -> Iterator[None]:
    """torch's own `flags`, which warns of TF32 on GPUs of Intel each time that it sets anything."""
    flags = torch.backends.mkldnn.flags(enabled=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flags.__enter__()
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flags.__exit__(None, None, None)
