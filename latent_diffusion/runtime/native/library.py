"""The compiled kernels: one shared library, found beside this file, or none."""

import ctypes
import functools
from enum import IntFlag
from pathlib import Path

from torch import Tensor

__all__ = ["LIBRARY", "Ability", "abilities", "address", "library"]

LIBRARY = Path(__file__).with_name("kernels.so")  # made by hatch_build.py


class Ability(IntFlag):
    """What the processor can do, of what the kernels need; the numbers are those of `abilities` in C."""

    NONE = 0
    AVX512 = 1
    AVX512_BF16 = 2


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the kernels, or None where they were not built, or built for another machine."""
    try:
        kernels = ctypes.CDLL(str(LIBRARY)) if LIBRARY.exists() else None
    except OSError:
        return None
    return kernels if hasattr(kernels, "abilities") else None


@functools.cache
def abilities() -> Ability:
    """Return what the processor can do; nothing where there are no kernels."""
    kernels = library()
    return Ability.NONE if kernels is None else Ability(kernels.abilities())


def address(x: Tensor) -> ctypes.c_void_p:
    """Return where the first number of `x` lies, for C; `x` must outlive the call."""
    return ctypes.c_void_p(x.data_ptr())
