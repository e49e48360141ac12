"""The compiled kernels: one shared library, found beside this file, or none."""

import ctypes
import functools
import hashlib
import os
from enum import IntFlag
from pathlib import Path

from torch import Tensor

from latent_diffusion.errors import warn

__all__ = ["LIBRARY", "Ability", "Strides", "abilities", "address", "library", "open_library"]

LIBRARY = Path(__file__).with_name("kernels.so")  # made by hatch_build.py
DIGEST = 32  # bytes


class Ability(IntFlag):
    """Processor features that the kernels need; the numbers are those of `abilities` in C."""

    NONE = 0
    AVX512 = 1
    AVX512_BF16 = 2


class Strides(ctypes.Structure):
    """How far the next batch entry, head and row of a tensor (B, N, L, d) lie, in numbers; as `Strides` in C."""

    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "head", "row")]

    @classmethod
    def of(cls, x: Tensor) -> "Strides":
        """Return those of `x`, whose channels are next to each other."""
        return cls(*x.stride()[:3])


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the kernels; None where LATENT_DIFFUSION_NATIVE is 0, or they were not built, or for another machine."""
    return None if os.environ.get("LATENT_DIFFUSION_NATIVE") == "0" else open_library(LIBRARY)


def open_library(file: Path) -> ctypes.CDLL | None:
    """Return the kernels in `file`, or None where they cannot be used; a warning names a damaged file.

    The file ends with the SHA-256 of what stands before. One that was cut or damaged is not opened: the system's
    loader would end the process with a signal.
    """
    try:
        data = file.read_bytes()
        if hashlib.sha256(data[:-DIGEST]).digest() != data[-DIGEST:]:
            warn(f"{file} is damaged and is not used, so drawing is slower; install the package again")
            return None
        kernels = ctypes.CDLL(str(file))
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
