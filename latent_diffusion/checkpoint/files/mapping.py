"""Pieces of a file as memory: read when they are looked at, copied where they are written to, never written back.

Every piece is a mapping of its own, given back to the system the moment its last tensor is gone. Python's `mmap` would
keep the file open once more for each piece, and a model has more of them than a process may have open files. 319 MiB of
weights, loaded and checked but not yet used, hold 2 MiB so, and 320 MiB through safetensors' `safe_open`
(`benchmarks/loading.py`).
"""

import ctypes
import mmap
import sys
import weakref

__all__ = ["LARGE", "map_piece", "own_pages", "page_out"]

LARGE = 2**18  # bytes from which a mapping is worth its place in the kernel's table

_PAGE_OUT = 21  # MADV_PAGEOUT of Linux 5.4
_pieces: dict[int, tuple[int, int]] = {}  # where the bytes of a piece begin -> its mapping: address and length


def map_piece(file: int, start: int, length: int) -> "tuple[ctypes.Array[ctypes.c_char], int] | None":
    """Return a buffer over `length` bytes of an open file from byte `start`, and where in it they begin.

    None where the system maps no files, or this one not: then it has to be read.
    """
    if not sys.platform.startswith("linux"):
        return None
    ahead = start % mmap.ALLOCATIONGRANULARITY
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    wanted = mmap.PROT_READ | mmap.PROT_WRITE
    address = libc.mmap(None, ahead + length, wanted, mmap.MAP_PRIVATE, file, start - ahead)
    if address == ctypes.c_void_p(-1).value:
        return None
    buffer = (ctypes.c_char * (ahead + length)).from_address(address)
    _pieces[address + ahead] = (address, ahead + length)

    def give_back() -> None:
        del _pieces[address + ahead]
        libc.munmap(address, ahead + length)

    weakref.finalize(buffer, give_back).atexit = False
    return buffer, ahead


def page_out(start: int) -> None:
    """Let the piece whose bytes begin at the address `start` leave memory until it is looked at again.

    Its numbers stay what they are, also where they were written to. Any other address is left as it is, and so is all
    where the system cannot do it.
    """
    if start in _pieces:
        address, length = _pieces[start]
        libc = ctypes.CDLL(None)
        libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        libc.madvise(address, length, _PAGE_OUT)


def own_pages(length: int) -> mmap.mmap:
    """Return `length` bytes of memory outside the heap, given back when they are dropped: a heap keeps holes."""
    if sys.platform == "win32":
        return mmap.mmap(-1, length)
    return mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
