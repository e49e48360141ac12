"""Values of the JSON that other tools write, checked and bounded: it is untrusted."""

import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["known", "read_float", "read_int", "read_object", "written"]

MAX_FIELDS = 300


def read_object(text: str) -> dict[str, Any] | None:
    """Return a JSON object, or None for anything else."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def known(values: dict[str, Any]) -> dict[str, Any]:
    """Return the texts and numbers that were found; texts are cut to 300 characters."""
    return {key: value[:300] if isinstance(value, str) else value for key, value in values.items() if _is_value(value)}


def _is_value(value: object) -> bool:
    return isinstance(value, str | int | float) and value != ""


def written(values: Mapping[str, Any]) -> dict[str, str]:
    """Return fields that have no counterpart here as texts, without those that are empty."""
    some = list(values.items())[:MAX_FIELDS]
    return {
        str(key)[:100]: (value if isinstance(value, str) else json.dumps(value))[:2000]
        for key, value in some
        if value not in (None, "", [], {}, False)
    }


def read_int(value: object) -> int | None:
    """Return a whole number, also one that is written as a text; seeds keep all their digits."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**20:
        return value
    if isinstance(value, str) and len(value) <= 20 and value.strip().removeprefix("-").isdecimal():
        return int(value)
    number = read_float(value)
    return int(number) if number is not None and number.is_integer() else None


def read_float(value: object) -> float | None:
    """Return a finite number, also one that is written as a text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or len(str(value)[:41]) > 40:
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
