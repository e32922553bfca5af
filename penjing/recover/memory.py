"""Memory that a training step frees is kept for the next step instead of going back to the system."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of glibc's mallopt(3): what keeps freed memory, and what holds usually (64-bit systems).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 64 * 2**20}


@contextmanager
def kept_memory() -> Iterator[None]:
    """Have the allocator keep large freed blocks for a while.

    By default glibc maps every block above 32 MB anew and unmaps it when it is freed. A step then spends its
    time in page faults on gradients as large as the last step's: a fifth of it, for a network of 100 million
    parameters. Afterwards the usual thresholds hold and what is free is given back. Elsewhere than on glibc
    nothing happens.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    for parameter, value in _KEEP.items():
        libc.mallopt(parameter, value)
    try:
        yield
    finally:
        for parameter, value in _USUAL.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
