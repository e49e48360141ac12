"""What a composed picture shows: things with colours, places and a ground; and the combinations never drawn."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from latent_diffusion.errors import DataError

__all__ = ["Combination", "Ground", "HeldOut", "Placed", "Scene"]

Combination = tuple[str, ...]
"""A kind, a value and the names of the things that have it: ("colour", "blue", "apple"), ("pair", "cat", "dog")."""


@dataclass(frozen=True)
class Ground:
    """What is behind the things: `form` plain, gradient or the name of a landscape, of the colour `colour`."""

    form: str = "plain"
    colour: str = "white"


@dataclass(frozen=True)
class Placed:
    """One thing of a scene.

    Attributes:
        row: of the source, whose picture it is.
        name: of the thing.
        colour: given to it; None: its own, which is not named.
        own: whether the colour is its own, and only named.
        side: its longer side, as a share of the picture's.
        y: its centre, 0 top to 1 bottom.
        x: its centre, 0 left to 1 right.
        form: "picture", or "outline" or "silhouette" in its colour.
    """

    row: int
    name: str
    colour: str | None = None
    own: bool = False
    side: float = 0.8
    y: float = 0.5
    x: float = 0.5
    form: str = "picture"


@dataclass(frozen=True)
class Scene:
    """A whole picture.

    Attributes:
        kind: of the composition.
        things: drawn from the first to the last.
        ground: behind them.
        place: where the only thing is, as in "top left"; "" where that is not named.
        size: "small" or "big", or "".
        relation: of the first thing to the second: "and", "left of", "above" and so on; "" for one name.
    """

    kind: str
    things: tuple[Placed, ...]
    ground: Ground = field(default_factory=Ground)
    place: str = ""
    size: str = ""
    relation: str = ""

    def combinations(self) -> Iterator[Combination]:
        """Yield everything that is combined in this picture."""
        names = [thing.name.lower() for thing in self.things]
        for thing, name in zip(self.things, names, strict=True):
            if thing.colour is not None:
                yield "colour", thing.colour, name
            if self.ground != Ground():
                yield "ground", self.ground.colour, name
        if self.relation:
            yield ("pair", *sorted(set(names)))
        elif len(names) > 1:
            yield "count", str(len(names)), names[0]
        if self.place:
            yield "place", self.place, names[0]


class HeldOut:
    """Combinations that are never drawn, from a file with a row {kind, value, names} a line."""

    def __init__(self, combinations: Sequence[Combination] = ()) -> None:
        self.combinations = frozenset(combinations)

    @classmethod
    def read(cls, path: str) -> "HeldOut":
        """Return those of a .jsonl file.

        Raises:
            DataError: it cannot be read, or a row lacks a field.
        """
        found: list[Combination] = []
        try:
            lines = Path(path).read_text("utf-8").splitlines()
            for line in filter(None, lines):
                row = json.loads(line)
                names = sorted(str(name).lower() for name in row["names"])
                found.append((str(row["kind"]), *([] if row["kind"] == "pair" else [str(row["value"])]), *names))
        except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"data.composed.held_out: {path}: {error!r}; expected lines such as "
                '{"kind": "colour", "value": "blue", "names": ["apple"]}'
            ) from error
        return cls(found)

    def has(self, scene: Scene, synonyms: Mapping[str, Sequence[str]] | None = None) -> bool:
        """Return whether the scene has a combination that is held out, under any of the words for its things."""
        words = [[thing.name, *(synonyms or {}).get(thing.name, ())] for thing in scene.things]
        if not scene.relation:  # all are alike
            called = [(word,) * len(scene.things) for word in words[0]]
        else:
            called = [*product(*words)]
        return any(
            combination in self.combinations
            for names in called
            for combination in replace(
                scene, things=tuple(replace(t, name=name) for t, name in zip(scene.things, names, strict=True))
            ).combinations()
        )
