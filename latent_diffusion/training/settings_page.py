"""Every setting of a run as text, made from the schemas: for docs/settings.md and for `--help`."""

import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from latent_diffusion.config import RunConfig, sections_in

__all__ = ["help_text", "settings_page"]

_SIGNS = (
    (Gt, "gt", ">"),
    (Ge, "ge", ">="),
    (Lt, "lt", "<"),
    (Le, "le", "<="),
    (MultipleOf, "multiple_of", "multiple of"),
)


def settings_page() -> str:
    """Return docs/settings.md; imports every objective, and so torch."""
    from latent_diffusion.data.batches.folder import DataConfig
    from latent_diffusion.registry import find, names

    parts = [
        "# Settings of a training run\n\nMade by `python scripts/make_settings_page.py` from the schemas. A key is set "
        "in the YAML file, or on the command line as `optimizer.learning_rate=1e-5`. Numbers are checked when the run "
        "starts; an unknown key is refused with the nearest one.\n",
        _section("The run", RunConfig, ""),
        _section("`data:`", DataConfig, "data."),
    ]
    package = "latent_diffusion.training.optimizers"
    for name in names(package):
        parts.append(_section(f"`optimizer: {{name: {name}}}`", find(package, name), "optimizer."))
    package = "latent_diffusion.training.objectives"
    for name in names(package):
        kind: Any = find(package, name)
        parts.append(_section(f"`objective: {{name: {name}}}`", kind.settings_type, "objective."))
    return "\n".join(parts)


def help_text() -> str:
    """Return the run's own keys, one a line with default and meaning."""
    lines = [f"  {key:<30} {default:<10} {meaning}" for key, _, default, _, meaning in _rows(RunConfig, "")]
    return "\n".join(
        ["keys of a run, with their defaults (docs/settings.md has all, data and objectives too):", *lines]
    )


def _section(title: str, model: type[BaseModel], prefix: str) -> str:
    lines = [f"## {title}\n", "| key | type | default | range | meaning |", "|---|---|---|---|---|"]
    for row in _rows(model, prefix):
        cells = [cell.replace("|", "\\|") for cell in row]
        lines.append(f"| `{cells[0]}` | {' | '.join(cells[1:])} |")
    return "\n".join(lines) + "\n"


def _rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield key, type, default, range and meaning of every field, those of nested sections after their section."""
    for name, field in model.model_fields.items():
        key, inner = f"{prefix}{name}", _nested(field)
        meaning = " ".join((field.description or "").split())
        yield key, "section" if inner else _type(field.annotation), _default(field), _range(field), meaning
        if inner:
            yield from _rows(inner, f"{key}.")


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    if get_origin(field.annotation) is list:  # of sections whose keys are described elsewhere
        return None
    return next(iter(sections_in(field.annotation)), None)


def _type(annotation: Any) -> str:
    shown = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    shown = re.sub(r"(?:\w+\.)+(\w+)", r"\1", shown)
    shown = re.sub(r"Literal\[(.*?)\]", lambda found: found.group(1).replace("'", "").replace(", ", " or "), shown)
    return shown.replace(" | None", " or null").replace(" | ", " or ").replace("Path", "path")


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "as below"
    words = {None: "null", True: "true", False: "false"}
    return (
        words[value]
        if value is None or isinstance(value, bool)
        else str(list(value) if isinstance(value, tuple) else value)
    )


def _range(field: FieldInfo) -> str:
    return ", ".join(
        f"{sign} {getattr(limit, name)}"
        for limit in field.metadata
        for kind, name, sign in _SIGNS
        if isinstance(limit, kind)
    )
