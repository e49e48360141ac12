"""Checks of single arguments: each returns the value, or refuses it with one line that names argument and range."""

import math
from collections.abc import Sequence

from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import nearest

__all__ = ["MAX_SIZE", "SIZE_STEP", "check_integer", "check_name", "check_number", "check_size"]

SIZE_STEP = 8  # px; what diffusers asks for, and what every published autoencoder divides by
MAX_SIZE = 8192  # px a side


def check_size(name: str, value: int) -> int:
    """Return a height or width in px.

    Raises:
        ConfigError: no multiple of 8 in 8 .. 8192.
    """
    check_integer(name, value, SIZE_STEP, MAX_SIZE)
    if value % SIZE_STEP:
        below = value // SIZE_STEP * SIZE_STEP
        raise ConfigError(f"{name} {value} is not a multiple of {SIZE_STEP}; use {below} or {below + SIZE_STEP}")
    return value


def check_name(name: str, value: object, known: Sequence[str]) -> str:
    """Return `value`, one of the `known` names.

    Raises:
        ConfigError: it is none of them.
    """
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"unknown {name} {value!r:.50}; there are {', '.join(known)}{nearest(str(value), known)}")
    return value


def check_integer(name: str, value: int, least: int, most: int) -> int:
    """Return `value`.

    Raises:
        ConfigError: no integer from `least` to `most`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"{name} {value!r} is not an integer from {least} to {most}")
    return value


def check_number(name: str, value: float, most: float) -> float:
    """Return `value` as a float.

    Raises:
        ConfigError: no number from 0 to `most`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= most:
        raise ConfigError(f"{name} {value!r} is not a number from 0 to {most:g}")  # NaN fails the comparison too
    if not math.isfinite(value):
        raise ConfigError(f"{name} {value!r} is not finite")
    return float(value)
