"""Draw a scene: which things, in which colours, where, before which ground."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from latent_diffusion.data.composed.colours import TARGETS
from latent_diffusion.data.composed.cutout import Cutout
from latent_diffusion.data.composed.painting import LANDSCAPES
from latent_diffusion.data.composed.scene import Ground, Placed, Scene
from latent_diffusion.data.composed.stock import Stock

__all__ = ["KINDS", "PLACES", "draw_scene"]

COLOURS = tuple(TARGETS)
GROUNDS = (*TARGETS, "grey")
PLACES = {
    f"{y} {x}".strip(): (b, a)
    for y, b in (("top", 0.2), ("", 0.5), ("bottom", 0.8))
    for x, a in (("left", 0.2), ("", 0.5), ("right", 0.8))
    if x or y
}
"""Names of places, and their centres (y, x)."""
LAYOUTS = {
    2: [(0.42, [(0.5, 0.26), (0.5, 0.74)]), (0.42, [(0.26, 0.5), (0.74, 0.5)])],
    3: [(0.28, [(0.5, 0.17), (0.5, 0.5), (0.5, 0.83)]), (0.4, [(0.26, 0.5), (0.74, 0.26), (0.74, 0.74)])],
    4: [(0.4, [(0.26, 0.26), (0.26, 0.74), (0.74, 0.26), (0.74, 0.74)])],
}
"""Of so many alike: their side, and their centres (y, x)."""


class _Draw:
    """The choices of one scene; every one may end in nothing (None), and the scene is drawn again."""

    def __init__(self, stock: Stock, draw: np.random.Generator) -> None:
        self.stock, self.draw = stock, draw

    def one_of(self, choices):
        return choices[int(self.draw.integers(len(choices)))]

    def chance(self, share: float) -> bool:
        return bool(self.draw.random() < share)

    def thing(self, style: str | None = None, *, colour: float = 0.0) -> Placed | None:
        """Return a thing in the centre, with a given colour for a share of the draws."""
        row = self.one_of(self.stock.rows if style is None else self.stock.styles[style])
        if self.stock.cutout(row) is None:
            return None
        if not self.chance(colour):
            return Placed(row, self.stock.name[row])
        given = self.one_of(COLOURS)
        return None if self.stock.coloured(row, given) is None else Placed(row, self.stock.bare_name(row), given)

    def cut(self, thing: Placed) -> Cutout:
        cut = self.stock.cutout(thing.row)
        assert cut is not None, "only things that can be cut out are drawn"
        return cut

    def ground(self, *things: Placed, share: float = 1.0) -> Ground | None:
        """Return a ground that is told from the things before it; white for a part of the draws."""
        if not self.chance(share):
            return Ground()
        if not all(self.cut(thing).clean for thing in things):
            return None
        present = {name for thing in things for name in ([thing.colour] if thing.colour else self.cut(thing).shows[:2])}
        form = "plain" if self.chance(0.6) else self.one_of(("gradient", *LANDSCAPES))
        colour = LANDSCAPES.get(form) or self.one_of(GROUNDS)
        near = {"orange": "brown", "brown": "orange", "purple": "blue", "grey": "white"}
        hidden = {colour, near.get(colour, colour), "black" if form == "night" else colour}
        return None if present & hidden else Ground(form, colour)

    def about(self, value: float, spread: float = 0.02) -> float:
        return float(value + self.draw.uniform(-spread, spread))


def _colour(draw: _Draw) -> Scene | None:
    thing = draw.thing(colour=0.85)
    if thing is None:
        return None
    if thing.colour is None:
        known = draw.cut(thing).colour
        if known not in TARGETS or known in thing.name.lower().split():
            return None
        thing = replace(thing, colour=known, own=True)
    thing = replace(thing, side=float(draw.draw.uniform(0.6, 0.95)), x=draw.about(0.5), y=draw.about(0.5))
    return Scene("colour", (thing,))


def _ground(draw: _Draw) -> Scene | None:
    thing = draw.thing(colour=0.3)
    ground = None if thing is None else draw.ground(thing)
    if thing is None or ground is None:
        return None
    thing = replace(thing, side=float(draw.draw.uniform(0.5, 0.85)), x=draw.about(0.5, 0.05), y=draw.about(0.5, 0.05))
    return Scene("ground", (thing,), ground)


def _place(draw: _Draw) -> Scene | None:
    thing = draw.thing(colour=0.15)
    ground = None if thing is None else draw.ground(thing, share=0.3)
    if thing is None or ground is None:
        return None
    size = draw.one_of(("small", "small", "", "big"))
    if size == "big" or draw.chance(0.1):
        size = size or "small"
        side = draw.draw.uniform(0.9, 0.98) if size == "big" else draw.draw.uniform(0.2, 0.32)
        return Scene("place", (replace(thing, side=float(side)),), ground, size=size)
    place = draw.one_of([*PLACES])
    y, x = PLACES[place]
    side = draw.draw.uniform(0.2, 0.3) if size else draw.draw.uniform(0.3, 0.42)
    thing = replace(thing, side=float(side), y=draw.about(y, 0.04), x=draw.about(x, 0.04))
    return Scene("place", (thing,), ground, place, size)


def _count(draw: _Draw) -> Scene | None:
    thing = draw.thing(colour=0.3)
    if thing is None or draw.cut(thing).parts != 1 or len(thing.name.split()) > 2:
        return None
    ground = draw.ground(thing, share=0.3)
    if ground is None:
        return None
    side, places = draw.one_of(LAYOUTS[draw.one_of((2, 3, 4))])
    side = side * float(draw.draw.uniform(0.85, 1.0))
    things = tuple(replace(thing, side=side, y=draw.about(y), x=draw.about(x)) for y, x in places)
    return Scene("count", things, ground)


def _pair(draw: _Draw) -> Scene | None:
    style = draw.stock.opening[draw.one_of(draw.stock.rows)]
    first, second = draw.thing(style, colour=0.3), draw.thing(style, colour=0.3)
    if first is None or second is None or first.name == second.name:
        return None
    if " with " in f"{first.name} {second.name}":  # "a house with garden and a tree" is read in two ways
        return None
    ground = draw.ground(first, second, share=0.25)
    if ground is None:
        return None
    relation = draw.one_of(("and", "and", "left of", "right of", "above", "on"))
    if relation in ("above", "on"):
        first, second = _stacked(draw, first, second, touching=relation == "on")
    else:
        left = relation == "left of" or (relation == "and" and draw.chance(0.5))
        places = (0.26, 0.74) if left else (0.74, 0.26)
        first, second = (
            replace(thing, side=float(draw.draw.uniform(0.36, 0.46)), y=draw.about(0.5, 0.08), x=draw.about(x))
            for thing, x in zip((first, second), places, strict=True)
        )
    return Scene("pair", (first, second), ground, relation=relation)


def _stacked(draw: _Draw, upper: Placed, lower: Placed, *, touching: bool) -> tuple[Placed, Placed]:
    """Return both with the first above the second, or on its top edge."""
    upper = replace(upper, side=float(draw.draw.uniform(0.36, 0.44)), x=draw.about(0.5, 0.06))
    lower = replace(lower, side=float(draw.draw.uniform(0.4, 0.48)), x=draw.about(0.5, 0.06))
    high, low = (
        cut.image.height / max(cut.image.size) * thing.side
        for cut, thing in ((draw.cut(upper), upper), (draw.cut(lower), lower))
    )
    if not touching:
        return replace(upper, y=0.26), replace(lower, y=0.74)
    middle = 0.5 + (high - low) / 2  # of the line where they meet
    return replace(upper, y=middle - high / 2 + 0.03), replace(lower, y=middle + low / 2)


def _form(draw: _Draw) -> Scene | None:
    thing = draw.thing()
    if thing is None:
        return None
    form, colour = draw.one_of(("outline", "silhouette")), draw.one_of((None, *COLOURS))
    return Scene("form", (replace(thing, form=form, colour=colour, side=float(draw.draw.uniform(0.6, 0.9))),))


KINDS: Mapping[str, Callable[[_Draw], Scene | None]] = {
    "colour": _colour, "ground": _ground, "place": _place, "count": _count, "pair": _pair, "form": _form
}  # fmt: skip
"""How a scene of each kind is drawn; None where the draw cannot be."""


def draw_scene(kind: str, stock: Stock, draw: np.random.Generator) -> Scene | None:
    """Return a scene of a kind; None where what was drawn cannot be, and another must be drawn."""
    return KINDS[kind](_Draw(stock, draw))
