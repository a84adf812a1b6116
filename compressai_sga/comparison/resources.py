# SPDX-License-Identifier: Apache-2.0
"""Resources of a piece of work: CPU seconds, and the peak memory above the memory in use before.

    with measured() as used:
        work()
    used["cpu_sec"], used["peak_memory_mb"]

On Linux the kernel keeps the highest resident size of a process. Writing "5" to /proc/self/clear_refs resets
it. Before that, freed memory that glibc still holds is given back, so that the number does not depend on
earlier work of the process. The number includes memory that the work keeps. On other systems it is not
reported. On a GPU, PyTorch's allocator gives "peak_gpu_memory_mb".

MB are 10^6 bytes. Work in other processes is not counted. Fails as the work itself fails.
"""

from __future__ import annotations

import ctypes
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

__all__ = ["measured"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """A dictionary that gets the numbers at the end of the block."""
    used: dict[str, float] = {}
    before = _forget_peak()
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
        gpu_before = torch.cuda.memory_allocated()
    start = time.process_time()
    yield used
    used["cpu_sec"] = time.process_time() - start
    if before is not None:
        used["peak_memory_mb"] = max(0, _resident("VmHWM") - before) / 1e6
    if gpu:
        used["peak_gpu_memory_mb"] = (torch.cuda.max_memory_allocated() - gpu_before) / 1e6


def _forget_peak() -> int | None:
    """Reset the peak to the present resident size, returned in bytes; None where this is not possible."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    try:
        _CLEAR.write_text("5")
    except OSError:
        return None
    return _resident("VmRSS")


def _resident(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB$", _STATUS.read_text(), re.M)
    return 1024 * int(found[1]) if found else 0
