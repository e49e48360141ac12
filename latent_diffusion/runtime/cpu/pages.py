"""Memory of weights that lie in a file as they do in memory, given back between two uses.

Weights that were mapped (`checkpoint.files.mapping`) come into memory page by page when a network reads them, and
stay. A text encoder is read once a call, at its beginning: what it took is wanted by the rest of the call. Giving a
page back costs nothing but fetching it from the kernel's cache when it is read again. Stable Diffusion 1's text tower
in float32 holds 374 MiB after a prompt, and 48 MiB after `give_back` (`benchmarks/page_faults.py`).
"""

import ctypes
import sys
from mmap import PAGESIZE

import numpy as np
from torch import nn

__all__ = ["give_back"]

OF_A_FILE = np.uint64(1 << 61)  # in /proc/self/pagemap: never written to, so that the file has the same
DONTNEED = 4  # madvise(2)


def give_back(module: nn.Module) -> None:
    """Drop the pages of `module`'s weights from memory that are still those of their file; its values stay.

    A page that someone wrote to is a copy by now and stays. Nobody may write to the weights meanwhile.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            for weight in module.parameters():
                first, last = -(-weight.data_ptr() // PAGESIZE), (weight.data_ptr() + weight.nbytes) // PAGESIZE
                if weight.device.type == "cpu" and last > first:
                    pagemap.seek(8 * first)
                    for begin, end in _runs(np.frombuffer(pagemap.read(8 * (last - first)), np.uint64)):
                        libc.madvise((first + begin) * PAGESIZE, (end - begin) * PAGESIZE, DONTNEED)
    except OSError:  # a system that does not say: then they stay
        return


def _runs(entries: np.ndarray) -> list[tuple[int, int]]:
    """Return first and last + 1 of each run of pages that are those of a file."""
    clean = np.concatenate([[False], (entries & OF_A_FILE) != 0, [False]])
    edges = np.flatnonzero(clean[1:] != clean[:-1])
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]
