"""The compiled kernels: one shared library, found beside this file, or none; and the level of them that runs here.

Each kernel is there once for each level of processor. The highest one that this processor has is used, or a lower one
that the environment variable LATENT_DIFFUSION_CPU_LEVEL names.
"""

import ctypes
import functools
import hashlib
import os
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

from torch import Tensor

from latent_diffusion.errors import ConfigError, warn

__all__ = ["DIGEST", "LIBRARY", "Level", "Strides", "address", "find", "kernel", "level", "library", "open_library"]

LIBRARY = Path(__file__).with_name("kernels.so")  # made by hatch_build.py
DIGEST = 32  # bytes


VARIABLE = "LATENT_DIFFUSION_CPU_LEVEL"


class Level(IntEnum):
    """Kinds of processor that the kernels are compiled for, each with all that the ones before it have.

    The numbers are those of `processor_level` in C, the names those of the functions' endings.
    """

    NONE = 0
    PLAIN = 1
    AVX2 = 2
    AVX512 = 3
    AVX512_VNNI = 4
    AVX512_BF16 = 5
    AMX = 6


ALLOWED = {each.name.lower(): each for each in Level if each}


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
        kernels = _opened(file)
    except OSError:
        return None
    if hasattr(kernels, "processor_level"):
        return kernels
    if hasattr(kernels, "abilities"):  # of an older version of this package
        warn(f"{file} is of an older version and is not used, so drawing is slower; run `python hatch_build.py`")
    return None


def _opened(file: Path) -> ctypes.CDLL:
    """Return a shared library that needs OpenMP: torch's, or where torch has another kind the system's."""
    try:
        return ctypes.CDLL(str(file))
    except OSError:
        ctypes.CDLL("libgomp.so.1", ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(file))


@functools.cache
def level() -> Level:
    """Return the level of the kernels that run here: the processor's, or the lower one of LATENT_DIFFUSION_CPU_LEVEL.

    Raises:
        ConfigError: the variable names no level.
    """
    kernels = library()
    found = Level.NONE if kernels is None else Level(kernels.processor_level())
    name = os.environ.get(VARIABLE, "")
    if not name:
        return found
    if name not in ALLOWED:
        raise ConfigError(f"{VARIABLE}={name}: no such level; choose one of {', '.join(ALLOWED)}, or unset it")
    if kernels is not None and ALLOWED[name] > found:
        warn(f"{VARIABLE}={name} has no effect: the highest level of this processor is {found.name.lower()}")
    return min(ALLOWED[name], found)


def find(name: str) -> Callable[..., int] | None:
    """Return the function `name` in C of the highest level that runs here and has it; None where there is none."""
    for each in range(level(), Level.NONE, -1):
        if (function := getattr(library(), f"{name}_{Level(each).name.lower()}", None)) is not None:
            return function
    return None


def kernel(name: str) -> Callable[..., int]:
    """Return the function `name` in C, which callers `find` first."""
    function = find(name)
    assert function is not None, f"there is no kernel {name} here"
    return function


def address(x: Tensor) -> ctypes.c_void_p:
    """Return where the first number of `x` lies, for C; `x` must outlive the call."""
    return ctypes.c_void_p(x.data_ptr())
