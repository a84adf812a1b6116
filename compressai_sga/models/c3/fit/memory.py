# SPDX-License-Identifier: Apache-2.0
"""Keeps freed memory in the process while a fit runs on a CPU.

A step of a fit allocates and frees the same few hundred megabytes. glibc gives blocks of that size back to
the kernel at every free, and the kernel hands them out again page by page, all zeroed: at 512x768 that is
half of the time of a step. Inside `kept` the process keeps these blocks. Afterwards they are given back, and
glibc's limits are those that it sets itself once a program has freed large blocks.

In:  nothing. Without glibc, and where the user has set MALLOC_ variables, nothing happens.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["kept"]

# mallopt's names for them (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_INSIDE = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1))
_OUTSIDE = ((_MMAP_MAX, 65536), (_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 64 << 20))


@contextmanager
def kept() -> Iterator[None]:
    """A context in which freed memory stays in the process."""
    library = _glibc()
    if library is None:
        yield
        return
    for parameter, value in _INSIDE:
        library.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in _OUTSIDE:
            library.mallopt(parameter, value)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
