"""Values of the JSON that other tools write, checked and bounded: it is untrusted.

Python writes NaN and Infinity, which are no JSON, and some tools pass them on. They are read as texts, so that no
number of a record is one of them and what is printed is JSON again; `no_numbers` names the fields that had them.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["known", "no_numbers", "read_float", "read_int", "read_object", "written"]

MAX_FIELDS = 300
MAX_NAMED = 20


class NotFinite(str):
    """A number of a file that is not finite, as it is written there: "NaN", "-Infinity", "1e999"."""


def read_object(text: str) -> dict[str, Any] | None:
    """Return a JSON object, or None for anything else; numbers that are not finite are `NotFinite` texts."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        values = json.loads(text, parse_constant=NotFinite, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _finite(text: str) -> float | NotFinite:
    number = float(text)
    return number if math.isfinite(number) else NotFinite(text)


def no_numbers(values: object) -> str:
    """Return the fields whose number is not finite, with what is written there: "cfg_scale Infinity, steps NaN"."""
    found: list[str] = []
    waiting: list[tuple[str, object]] = [("", values)]
    while waiting and len(found) < MAX_NAMED:
        name, value = waiting.pop()
        if isinstance(value, NotFinite):
            found.append(f"{name} {value}"[:100])
        elif isinstance(value, dict):
            waiting += [(str(key), inner) for key, inner in value.items() if key != "is_changed"]  # ComfyUI's own mark
        elif isinstance(value, list):
            waiting += [(name, inner) for inner in value]
    return ", ".join(sorted(set(found)))


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
