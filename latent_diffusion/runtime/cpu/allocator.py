"""Keep glibc from giving large blocks back to the kernel after every step.

By default malloc serves blocks above 128 KiB .. 32 MiB with mmap and returns them at once; the next update zeroes the
same pages again, one page fault each. Two thresholds end that: an update of the bundled model's U-Net (batch 4, one
thread, torch 2.14) has 8834 page faults, 35 MiB, without them and none with them (`benchmarks/page_faults.py`).
"""

import contextlib
import ctypes
import functools
import sys
from collections.abc import Iterator

__all__ = ["give_back_free", "keep_large_blocks", "large_blocks_apart"]

_M_TRIM_THRESHOLD = -1  # malloc.h
_M_MMAP_THRESHOLD = -3
_NEVER = 2**31 - 1  # mallopt takes an int


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """Return the C library with malloc's settings; None where it has none."""
    if not sys.platform.startswith("linux"):
        return None
    with contextlib.suppress(OSError):
        libc = ctypes.CDLL("libc.so.6")
        return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
    return None


def keep_large_blocks() -> bool:
    """Make malloc keep freed blocks for reuse; return False where there is no glibc (then nothing changes)."""
    libc = _glibc()
    if libc is None:
        return False
    # 1 GiB: the largest mmap threshold that glibc accepts is HEAP_MAX_SIZE / 2 for arenas, but the main one takes more
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, 2**30)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, _NEVER))


@contextlib.contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Give blocks of 1 MiB or more pages of their own, so that they leave no hole when freed; then keep them again."""
    if libc := _glibc():
        libc.mallopt(_M_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        keep_large_blocks()


def give_back_free() -> None:
    """Give what is free to the kernel once, where another kind of work begins; some 40 ms for each 500 MB."""
    if libc := _glibc():
        libc.malloc_trim(0)
