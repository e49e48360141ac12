"""The prompts of the composition test, and the pictures that answer them, composed of real ones."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from latent_diffusion.data.composed.drawing import LAYOUTS, PLACES
from latent_diffusion.data.composed.painting import paint
from latent_diffusion.data.composed.scene import Ground, Placed, Scene
from latent_diffusion.data.composed.stock import Stock
from latent_diffusion.data.pictures.images import to_tensor
from latent_diffusion.errors import DataError
from latent_diffusion.randomness import generator

__all__ = ["KINDS", "Asked", "answer", "read_asked"]

KINDS = ("colour", "ground", "count", "pair", "place")
FIELDS = ("kind", "prompt", "style", "value", "names")


@dataclass(frozen=True)
class Asked:
    """One prompt.

    Attributes:
        kind: one of `KINDS`.
        prompt: as a person types it.
        style: of the data set, which the prompt names; "" where it names none.
        value: a colour, a number or a place; "" for a pair.
        names: of the things, as the data set has them.
    """

    kind: str
    prompt: str
    style: str
    value: str
    names: tuple[str, ...]


def read_asked(path: str | Path) -> list[Asked]:
    """Return the prompts of a .jsonl file.

    Raises:
        DataError: it cannot be read, a field is missing, or a kind is unknown.
    """
    found = []
    try:
        for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), start=1):
            row = json.loads(line)
            if not isinstance(row, dict) or sorted(row) != sorted(FIELDS) or row["kind"] not in KINDS:
                raise DataError(
                    f"{path}:{number}: expected the fields {', '.join(FIELDS)}; kinds are {', '.join(KINDS)}"
                )
            found.append(Asked(**{**row, "names": tuple(row["names"])}))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a composition test: {error}") from error
    if not found:
        raise DataError(f"{path}: holds no prompts")
    return found


def _scene(asked: Asked, rows: Sequence[int]) -> Scene:
    """Return the scene that a prompt asks for, with the things of these rows."""
    first = Placed(rows[0], asked.names[0])
    if asked.kind == "colour":
        return Scene("colour", (Placed(rows[0], asked.names[0], asked.value),))
    if asked.kind == "ground":
        return Scene("ground", (first,), Ground("plain", asked.value))
    if asked.kind == "place":
        y, x = PLACES[asked.value]
        return Scene("place", (Placed(rows[0], asked.names[0], side=0.38, y=y, x=x),), place=asked.value)
    if asked.kind == "count":
        side, places = LAYOUTS[int(asked.value)][-1]
        return Scene("count", tuple(Placed(rows[0], asked.names[0], side=side, y=y, x=x) for y, x in places))
    both = zip(rows, asked.names, (0.26, 0.74), strict=True)
    return Scene("pair", tuple(Placed(row, name, side=0.44, x=x) for row, name, x in both), relation="and")


def answer(asked: Asked, stock: Stock, size: int, style: str) -> Tensor | None:
    """Return a picture (3, size, size) in [-1, 1] that shows what is asked, or None where the things cannot be cut out.

    Args:
        asked: a prompt.
        stock: pictures of the data set.
        size: side, px.
        style: opening words of the captions whose pictures are used.
    """
    rows = [next((k for k in stock.styles.get(style, ()) if stock.name[k] == name), None) for name in asked.names]
    if any(row is None or stock.cutout(row) is None for row in rows):
        return None
    scene = _scene(asked, [row for row in rows if row is not None])
    if any(stock.coloured(thing.row, thing.colour) is None for thing in scene.things):
        return None
    return to_tensor(paint(scene, size, stock.image, generator(0, "answer", 0))).to(torch.float32)
