"""Text forms of objects: "name:key=value,key=value" names a file of a folder and sets fields of its class.

The one parser of such texts: samplers ("restart:repeats=2"), guidances ("pag:scale=3") and approximations.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import find, names, nearest

__all__ = ["build", "number", "split_name", "text_of", "texts_of", "values_told"]

LONGEST = 50  # characters of a name that a message repeats
MOST = 16  # texts in one call; each may cost a call of the network


def build(package: str, text: str, make: Callable[..., Any] | None = None, **defaults: Any) -> Any:
    """Return the object that a text describes, such as "pag:scale=3" of `latent_diffusion.guidance`.

    Args:
        package: the folder whose file the text names.
        text: "name" or "name:key=value,key=value".
        make: (class, values) -> object, where the class is not called with the values themselves.
        defaults: values of fields that the text does not set; those that the class does not have are left out.

    Raises:
        ConfigError: an unknown name or field, or a value that cannot be.
    """
    name, told = split_name(_what(package), text)
    kind = find(package, name)
    values = values_told(package, name, told)
    own = {field.name for field in fields(kind)}
    values = {**{key: value for key, value in defaults.items() if key in own}, **values}
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.name not in values]
    if make is not None:
        return make(kind, values)
    if missing:
        raise ConfigError(f"{_what(package)} {name!r} needs {' and '.join(missing)}, which a text cannot give")
    return kind(**values)


def text_of(package: str, found: Any, extra: Mapping[str, object] | None = None) -> str:
    """Return the text that `build` makes the object of, every number written out; others are left out.

    `extra` are values that are written besides those of its fields.
    """
    kinds = {find(package, name): name for name in names(package)}
    values = {field.name: getattr(found, field.name) for field in fields(found) if _writable(field)}
    told = ",".join(f"{key}={value}" for key, value in {**values, **(extra or {})}.items() if value != "")
    name = kinds.get(type(found), type(found).__name__)
    return f"{name}:{told}" if told else name


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


def split_name(what: str, text: str) -> tuple[str, dict[str, str]]:
    """Return the name and the values of "name:key=value,key=value".

    Raises:
        ConfigError: a part that is no key=value.
    """
    name, _, rest = text.partition(":")
    name = name.strip()[:LONGEST]
    told: dict[str, str] = {}
    for item in filter(None, (item.strip() for item in rest.split(","))):
        key, equals, words = item.partition("=")
        if not equals or not words.strip():
            raise ConfigError(f"{what} {name!r}: {item!r:.50} is no key=value; write {name}:key=value,key=value")
        told[key.strip()] = words.strip()
    return name, told


def values_told(package: str, name: str, told: Mapping[str, str], others: Sequence[str] = ()) -> dict[str, Any]:
    """Return the values of the fields of file `name`; `others` are what may be set besides, for the message.

    Raises:
        ConfigError: an unknown field, or a value of the wrong type.
    """
    known = {field.name: field for field in fields(find(package, name)) if _writable(field)}
    for key in told:
        if key not in known:
            every = (*known, *others)
            has = f"it has {', '.join(every)}" if every else "it has no fields"
            raise ConfigError(f"{_what(package)} {name!r} has no {key!r:.50}{nearest(key, every)}; {has}")
    return {key: _value(f"{name}: {key}", known[key], words) for key, words in told.items()}


def number(what: str, words: object) -> float:
    """Return a number, infinities included.

    Raises:
        ConfigError: it is none.
    """
    try:
        found = float(words) if isinstance(words, str | int | float) and not isinstance(words, bool) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if math.isnan(found):
        raise ConfigError(f"{what} {words!r:.50} is not a number")
    return found


def _what(package: str) -> str:
    """Return what a folder holds, for messages: "sampler" for `latent_diffusion.samplers`."""
    return package.rpartition(".")[2].rstrip("s")


def _writable(field: Field[Any]) -> bool:
    """Return whether words can give the field."""
    return field.type in (float, int, str)


def _value(what: str, field: Field[Any], words: str) -> float | int | str:
    """Return what `words` say, of the type of `field`."""
    if field.type is str:
        return words
    found = number(what, words)
    if field.type is int:
        if not found.is_integer():
            raise ConfigError(f"{what} {words!r:.50} is not an integer")
        return int(found)
    return found
