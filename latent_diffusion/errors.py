"""The errors a user can cause, each with the exit code the command line ends with.

An error message is one line: what, where (file, line, field), what was found, what is allowed, what to do.
Anything else that escapes is our bug: exit code 70.
"""

import errno
import sys
import warnings

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "LatentDiffusionError",
    "LatentDiffusionWarning",
    "ResourceError",
    "describe",
    "first_line",
    "warn",
]

_INSIDE = ("latent_diffusion", "contextlib", "torch")  # decorators of the latter two stand between our functions


class LatentDiffusionError(Exception):
    """Base of every error a user can cause; `exit_code` is what the process ends with."""

    exit_code = 70


class ConfigError(LatentDiffusionError, ValueError):
    """The command line, an argument or a configuration is wrong (exit code 2)."""

    exit_code = 2


class DataError(LatentDiffusionError, ValueError):
    """An image, mask, caption or data set is missing, broken or of another size (exit code 3)."""

    exit_code = 3


class CheckpointError(LatentDiffusionError, ValueError):
    """A model or checkpoint is missing, damaged or does not fit (exit code 4)."""

    exit_code = 4


class DivergedError(LatentDiffusionError, ArithmeticError):
    """A loss, gradient or picture became NaN or infinite (exit code 5)."""

    exit_code = 5


class ResourceError(LatentDiffusionError, OSError):
    """Disk, memory, device, port, lock or output folder cannot be had (exit code 6)."""

    exit_code = 6


class LatentDiffusionWarning(UserWarning):
    """Something the user should know that is no error; the command line prints these, and only these."""


def warn(message: str) -> None:
    """Warn of something that is no error, at the line outside the package that called it."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, LatentDiffusionWarning, stacklevel=depth)


def first_line(fault: Exception) -> str:
    """Return the first line of another library's message, or the name of its class where it has none."""
    return next(iter(str(fault).strip().splitlines()), type(fault).__name__)


def describe(error: Exception, *, out_of_memory: str) -> tuple[int, str]:
    """Return the exit code of an error and its one line; `out_of_memory` is what to do when memory runs out."""
    if isinstance(error, LatentDiffusionError):
        return error.exit_code, str(error)
    kind, text = type(error).__name__, str(error)
    # torch raises a kind of its own on GPUs, and on CPUs a RuntimeError that only its words tell from others
    short = isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or short:
        return ResourceError.exit_code, f"out of memory; {out_of_memory}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        place = error.filename or "output"
        return ResourceError.exit_code, f"{place}: {error.strerror}; free some space or choose another output"
    return 70, f"a bug in this package: {kind}: {text}; run again with --debug and report the traceback"
