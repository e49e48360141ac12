"""Checks of single arguments: each returns the value, or refuses it with one line that names argument and range."""

from collections.abc import Sequence

from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import nearest

__all__ = [
    "MAX_SEED",
    "MAX_SIZE",
    "SIZE_STEP",
    "check_flag",
    "check_integer",
    "check_name",
    "check_number",
    "check_size",
]

MAX_SEED = 2**32 - 1  # torch's CPU generator reads only the low 32 bits
SIZE_STEP = 8  # px; diffusers' requirement, and a multiple of every published autoencoder's factor
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
        raise ConfigError(f"{name} {value!r:.50} is not an integer from {least} to {most}")
    return value


def check_number(name: str, value: float, most: float, least: float = 0.0) -> float:
    """Return `value` as a float.

    Raises:
        ConfigError: no number from `least` to `most`, both allowed.
    """
    # NaN fails the comparison too
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ConfigError(f"{name} {value!r:.50} is not a number from {least:g} to {most:g}")
    return float(value)


def check_flag(name: str, value: bool) -> bool:
    """Return `value`.

    Raises:
        ConfigError: neither True nor False.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{name} {value!r:.50} is neither True nor False")
    return value
