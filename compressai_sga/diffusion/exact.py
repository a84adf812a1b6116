# SPDX-License-Identifier: Apache-2.0
"""The same bits from a network on the CPU, whatever the number of threads and the batch.

A decoder that steers an entropy coder by a network must get the encoder's numbers to the last bit. Measured
with torch 2.15 and AVX-512: oneDNN chooses its convolutions by batch and threads, and NNPACK takes over from
a batch of 16, so that results differ in their last bits; torch's own convolutions (a matrix product for each
image) and GroupNorm do not. What is left is torch's vectorised exp (SiLU, sigmoid, softmax), which rounds
differently at the end of a thread's share, and matrix products over the batch; `unet.UNet` avoids both.

    with exact_cpu():                # any network: one thread; keep the batch at one size, best 1
    with exact_cpu(threads=None):    # UNet without attention, one log-SNR and one label for the batch:
                                     # threads and batch are free

It says nothing about other CPUs, or other versions of torch: put what they are into the file's header, round
before coding, and check. Costs 10 to 20 % of the speed. The settings are the process's: not for several
threads of Python that want different ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["exact_cpu"]


@contextmanager
def exact_cpu(threads: int | None = 1) -> Iterator[None]:
    """Turns oneDNN and NNPACK off, and sets the number of threads; everything is put back afterwards.

    Args:
        threads: of torch inside; None leaves them.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}; it must be at least 1, or None")
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        with _without_onednn(), torch.backends.nnpack.flags(enabled=False):
            yield
    finally:
        torch.set_num_threads(before)


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
