"""Objects told in words: "name:key=value,key=value" names a file of a folder and sets fields of what it exports."""

import math
from collections.abc import Sequence
from dataclasses import Field
from typing import Any

from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import nearest

__all__ = ["fields_told", "number", "split_name", "texts_of", "value", "writable"]

LONGEST = 50  # characters of a name that a message repeats
MOST = 16  # texts in one call; each may cost a call of the network


def texts_of(what: str, asked: object, kind: str) -> Sequence[str]:
    """Return the texts of an option that is None, a text or several.

    Raises:
        ConfigError: something else, or more than any call needs; `kind` is the class that the option takes as well.
    """
    if asked is None:
        return ()
    texts = [asked] if isinstance(asked, str) else asked
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{what} {asked!r:.80}; give a name, a list of names, or {kind}")
    if len(texts) > MOST:
        raise ConfigError(f"{len(texts)} {what}s; at most {MOST} in one call")
    return texts


def split_name(what: str, text: str, example: str) -> tuple[str, dict[str, str]]:
    """Return the name and the values of "name:key=value,key=value".

    Raises:
        ConfigError: a part that is no key=value; `example` is one.
    """
    name, _, rest = text.partition(":")
    name = name.strip()[:LONGEST]
    told: dict[str, str] = {}
    for item in filter(None, (item.strip() for item in rest.split(","))):
        key, equals, words = item.partition("=")
        if not equals:
            raise ConfigError(f"{what} {name!r}: {item!r:.50} is no key=value; write for example {name}:{example}")
        told[key.strip()] = words.strip()
    return name, told


def writable(field: Field[Any]) -> bool:
    """Return whether words can say the field."""
    return field.type in (float, int, str)


def fields_told(
    what: str, name: str, told: dict[str, str], known: dict[str, Field[Any]], others: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the values of `known` fields; `others` are what may be said besides, for the message.

    Raises:
        ConfigError: an unknown field, or a value of the wrong type.
    """
    for key in told:
        if key not in known:
            every = (*known, *others)
            raise ConfigError(f"{what} {name!r} has no {key!r:.50}{nearest(key, every)}; it has {', '.join(every)}")
    return {key: value(f"{name}: {key}", known[key], words) for key, words in told.items()}


def value(what: str, field: Field[Any], words: str) -> float | int | str:
    """Return what `words` say, of the type of `field`.

    Raises:
        ConfigError: no number, or no integer.
    """
    if field.type is str:
        return words
    found = number(what, words)
    if field.type is int:
        if not found.is_integer():
            raise ConfigError(f"{what} {words!r} is not an integer")
        return int(found)
    return found


def number(what: str, words: object) -> float:
    """Return a number, infinities included.

    Raises:
        ConfigError: it is none.
    """
    try:
        found = float(words) if isinstance(words, str | int | float) and not isinstance(words, bool) else math.nan
    except ValueError:
        found = math.nan
    if math.isnan(found):
        raise ConfigError(f"{what} {words!r:.50} is not a number")
    return found
