"""The command line's side of `options/`: each declared option as typer takes it."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar, get_origin

import typer

from latent_diffusion.options.option import Option, declared, plain_type

__all__ = ["given_of", "only", "takes"]

Command = TypeVar("Command", bound=Callable[..., Any])
BY_NAME = inspect.Parameter.KEYWORD_ONLY


class Numbers(tuple[float, ...]):
    """Numbers written with commas."""

    @classmethod
    def parse(cls, text: str) -> "Numbers":
        """Return the numbers of "999,500,0".

        Raises:
            typer.BadParameter: a part that is no number.
        """
        try:
            return cls(float(part) for part in text.split(","))
        except ValueError:
            raise typer.BadParameter(f"{text[:60]!r} is no list of numbers such as 999,600,200") from None


def takes(*groups: type | Sequence[Option], without: Collection[str] = ()) -> Callable[[Command], Command]:
    """Return a decorator that adds options to a command's signature; the function itself stays what typer calls.

    An option replaces the command's own parameter of its name. All others arrive in the command's `**given`.

    Args:
        *groups: TypedDicts of `options/`, or what `only` returned.
        without: names to leave out.
    """
    every = [option for group in groups for option in (declared(group) if isinstance(group, type) else group)]
    added = [_parameter(option) for option in every if option.name not in without]
    names = {parameter.name for parameter in added}

    def put(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True).parameters.values()
        kept = [p.replace(kind=BY_NAME) for p in own if p.kind is not p.VAR_KEYWORD and p.name not in names]
        command.__dict__["__signature__"] = inspect.Signature(kept + added)
        return command

    return put


def only(group: type, *names: str, **changes: Any) -> list[Option]:
    """Return some options of a TypedDict, with `changes` of their declaration: `shown="as it was"`."""
    return [replace(option, **changes) for option in declared(group) if option.name in names]


def given_of(group: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a TypedDict that a command line holds, without those left to their default."""
    return {option.name: given[option.name] for option in declared(group) if given.get(option.name) is not None}


def _parameter(option: Option) -> inspect.Parameter:
    kind, parse = plain_type(option.cli or option.type), None
    if get_origin(kind) is Literal:
        kind = str  # an unknown name is refused with the nearest known one, by `Option.check`
    if kind == Sequence[float]:
        kind, parse = Numbers, Numbers.parse
    default = None if option.shown else option.default  # None: the Python side fills it in
    names = [flag for flag in option.flags if flag.startswith("--")] or [f"--{option.name.replace('_', '-')}"]
    if kind is bool and default is not False:
        names = [f"{names[0]}/--no-{names[0].removeprefix('--')}"]
    info = typer.Option(
        *names,
        *(flag for flag in option.flags if not flag.startswith("--")),
        help=option.help,
        metavar=option.metavar,
        rich_help_panel=option.panel,
        show_default=option.shown or default is not None,
        parser=parse,
        min=option.least if option.refused_early else None,
        max=option.most if option.refused_early else None,
    )
    annotation: Any = Annotated[kind if default is not None else kind | None, info]
    return inspect.Parameter(option.name, BY_NAME, default=default, annotation=annotation)
