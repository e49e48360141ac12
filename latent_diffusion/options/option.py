"""How an option is declared: once, as one annotation of a TypedDict in this folder.

    guidance_rescale: Annotated[float, Option("Reduces overexposure.", 0.0, most=1.0, metavar="X", panel=SAMPLING)]

Everything else follows from that line: the keyword of the Python methods (`Unpack[Options]`), the default and the check
(`checked`), the flag and its help on the command line (`cli.arguments`), the field of the record in a picture
(`recorded`), and the argument with which `regenerate` draws the picture again. An annotation without an `Option` is a
keyword of the Python methods only, and no part of the record.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import cache
from types import UnionType
from typing import Any, ForwardRef, Literal, Union, get_args, get_origin

from latent_diffusion.checks import check_flag, check_integer, check_name, check_number
from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import nearest

__all__ = [
    "MACHINE",
    "MODEL",
    "PICTURE",
    "PROMPT",
    "SAMPLING",
    "SDXL",
    "Option",
    "arguments_of",
    "check_names",
    "checked",
    "declared",
    "recorded",
    "recorded_values",
]

PROMPT, PICTURE, SAMPLING, SDXL, MODEL, MACHINE = "Prompt", "Picture", "Sampling", "SDXL", "Model", "Machine"
"""Titles under which `--help` lists options."""


@dataclass(frozen=True)
class Option:
    """One option: what it does, its default and where it appears."""

    help: str
    default: Any = None  # None = the model's choice, or none
    metavar: str | None = None  # how help names the value
    panel: str | None = None  # title in help
    flags: tuple[str, ...] = ()  # on the command line, where they differ from the name: "--steps", or a short "-g"
    shown: str | None = None  # default as help shows it, where the value is chosen later
    cli: Any = None  # type on the command line; None = as annotated
    least: float = 0
    most: float | None = None  # None = checked where the model is known
    refused_early: bool = False  # whether the command line itself checks the range
    recorded: Any = True  # whether the record holds it; a type where that is narrower than the annotation
    record_name: str = ""  # in the record, where it differs
    before: Any = ...  # value in records that are older than the option, where it is not the default
    name: str = ""  # filled in by `declared`
    type: Any = None  # likewise, with None where that is allowed

    def check(self, value: Any) -> Any:
        """Return `value`, or the default for None where the annotation allows it; an int becomes a float where asked.

        Raises:
            ConfigError: a value of another type, out of range, or none of the names.
        """
        optional = isinstance(self.type, ForwardRef) or type(None) in get_args(self.type)
        if optional and value is None:
            return self.default
        kind = plain_type(self.type)
        if get_origin(kind) is Literal:
            return check_name(self.name, value, get_args(kind))
        if kind is bool:
            return check_flag(self.name, value)
        if kind is int and self.most is not None:
            return check_integer(self.name, value, int(self.least), int(self.most))
        if kind is float and self.most is not None:
            return check_number(self.name, value, self.most)
        return value

    @property
    def field_name(self) -> str:
        """Name in the record."""
        return self.record_name or self.name


def plain_type(annotation: Any) -> Any:
    """Return the type without None; other unions stay as they are."""
    if get_origin(annotation) not in (UnionType, Union):
        return annotation
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 else annotation


@cache
def declared(kind: type) -> tuple[Option, ...]:
    """Return the options that the TypedDict `kind` and its bases declare, in their order."""
    found = []
    for name, annotation in kind.__annotations__.items():
        for mark in getattr(annotation, "__metadata__", ()):
            if isinstance(mark, Option):
                found.append(replace(mark, name=name, type=annotation.__origin__))
    return tuple(found)


def check_names(kind: type, options: Mapping[str, Any]) -> None:
    """Refuse names that the TypedDict `kind` does not have.

    Raises:
        ConfigError: naming the unknown one and the nearest known.
    """
    known = tuple(kind.__annotations__)
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown argument {name!r}{nearest(name, known)}; there are {', '.join(known)}")


@cache
def checked(kind: type) -> Any:
    """Return a frozen dataclass with the options of `kind` as fields, checked and completed with their defaults.

    Its class method `read` takes them out of the options of a call and returns the rest beside it; `resolved` returns
    a copy with values that the model chose, which are not checked again.
    """
    options = declared(kind)

    def check(self: Any) -> None:
        for option in options:
            object.__setattr__(self, option.name, option.check(getattr(self, option.name)))

    def read(cls: Any, given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        own = {part.name for part in fields(cls)}
        rest = {name: value for name, value in given.items() if name not in own}
        return cls(**{name: value for name, value in given.items() if name in own}), rest

    def resolved(self: Any, **values: Any) -> Any:
        new = object.__new__(type(self))
        new.__dict__.update(vars(self) | values)
        return new

    parts = [(option.name, option.type, field(default=option.default)) for option in options]
    methods = {"__post_init__": check, "read": classmethod(read), "resolved": resolved, "__module__": __name__}
    return make_dataclass(kind.__name__, parts, namespace=methods, frozen=True, kw_only=True)


@cache
def recorded(kind: type) -> Any:
    """Return a frozen dataclass with the options of `kind` that decide pixels, as a record holds them."""
    parts: list[Any] = []
    for option in _recorded(kind):
        narrower = option.type if option.recorded is True else option.recorded
        default = option.default if option.before is ... else option.before
        must = default is None and type(None) not in get_args(narrower)
        parts.append((option.field_name, narrower, field() if must else field(default=default)))
    return make_dataclass(
        f"Recorded{kind.__name__}", parts, namespace={"__module__": __name__}, frozen=True, kw_only=True
    )


def recorded_values(kind: type, values: Any) -> dict[str, Any]:
    """Return the fields of a record: the attributes of `values` that `kind` declares as recorded."""
    return {option.field_name: getattr(values, option.name) for option in _recorded(kind)}


def arguments_of(kind: type, record: Any) -> dict[str, Any]:
    """Return the arguments that a record was made with, without those that were None."""
    values = {option.name: getattr(record, option.field_name) for option in _recorded(kind)}
    return {name: value for name, value in values.items() if value not in (None, ())}


def _recorded(kind: type) -> list[Option]:
    return [option for option in declared(kind) if option.recorded is not False]
