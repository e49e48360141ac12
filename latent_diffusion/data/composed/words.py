"""Captions of scenes as a person types them: word orders, articles, plurals, the style at either end or none."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from latent_diffusion.data.composed.scene import Ground, Placed, Scene

__all__ = ["Names", "caption", "false_scenes", "plural", "with_article"]

COUNTS = {2: ("two", "2"), 3: ("three", "3"), 4: ("four", "4")}
_OTHER_WORDS = {"purple": "violet", "grey": "gray"}
_SIZES = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}
_OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
_LANDSCAPES = {
    "grass": ("on grass", "on the grass", "in a meadow", "on a green meadow"),
    "night": ("at night", "in the night", "under the stars", "in a starry night"),
    "beach": ("on a beach", "at the beach", "on the sand", "by the sea"),
    "snow": ("in the snow", "on snow", "in winter", "on the snow"),
}
_GROUNDS = (
    *("on a {} background", "on a {} background", "on {}", "in front of a {} background", "with a {} background"),
    *("against a {} background", "{} background"),
)
_IRREGULAR = {
    "mouse": "mice", "goose": "geese", "ox": "oxen", "man": "men", "woman": "women", "foot": "feet", "tooth": "teeth",
    "knife": "knives", "wolf": "wolves", "leaf": "leaves", "calf": "calves", "loaf": "loaves", "scarf": "scarves",
    "fish": "fish", "sheep": "sheep", "deer": "deer", "bison": "bison", "moose": "moose", "squid": "squid",
    "shrimp": "shrimp", "potato": "potatoes", "tomato": "tomatoes", "mango": "mangoes", "tornado": "tornadoes",
    "volcano": "volcanoes", "mosquito": "mosquitoes", "bus": "buses",
}  # fmt: skip


@dataclass(frozen=True)
class Names:
    """How the pictures of a source are called.

    Attributes:
        opening: the style's words before the name, by row of the source ("a 3d render of"); "" where there are none.
        synonyms: other words for a name.
    """

    opening: Mapping[int, str]
    synonyms: Mapping[str, Sequence[str]]


def plural(name: str) -> str:
    """Return the plural of a name, whose last word is the noun."""
    head, _, noun = name.rpartition(" ")
    lower = noun.lower()
    if lower in _IRREGULAR:
        made = _IRREGULAR[lower]
    elif re.search(r"[^aeiou]y$", lower):
        made = f"{noun[:-1]}ies"
    elif re.search(r"(s|x|z|ch|sh)$", lower):
        made = f"{noun}es"
    else:
        made = f"{noun}s"
    return f"{head} {made}".strip()


def with_article(words: str) -> str:
    """Return the words with a or an."""
    silent = re.match(r"(hour|honest|[FHLMNRSX]\b|[FHLMNRSX]-)", words)
    vowel = re.match(r"[aeiouAEIOU]", words) and not re.match(r"(uni|use|usu|eu|one|ewe|uk)", words, re.IGNORECASE)
    return f"{'an' if silent or vowel else 'a'} {words}"


def caption(scene: Scene, names: Names, draw: np.random.Generator) -> str:
    """Return one true caption of a scene; every choice is drawn."""
    article = draw.random() < 0.75

    def pick(choices: Sequence[str]) -> str:
        return choices[int(draw.integers(len(choices)))]

    def word(colour: str) -> str:
        return _OTHER_WORDS[colour] if colour in _OTHER_WORDS and draw.random() < 0.2 else colour

    def called(name: str) -> str:
        return pick([name, *names.synonyms.get(name, ())]) if draw.random() < 0.5 else name

    def phrase(name: str, colour: str | None, count: int = 1, size: str = "") -> str:
        noun = called(name)
        form = scene.things[0].form
        words = [pick(_SIZES[size])] if size else []
        colour = None if colour is None else word(colour)
        late = colour is not None and form == "picture" and draw.random() < 0.1
        words += [colour] if colour is not None and not late else []
        if count > 1:
            return " ".join([pick(COUNTS[count]), *words, plural(noun)]) + (f" in {colour}" if late else "")
        if form != "picture":
            inner = with_article(noun) if article else noun
            made = " ".join([*words, f"{form} of {inner}" if draw.random() < 0.7 else f"{noun} {form}"])
        else:
            made = " ".join([*words, noun])
        made = with_article(made) if article else made
        return made + (pick((" in {}", " that is {}")).format(colour) if late else "")

    first = scene.things[0]
    if scene.relation:
        one, two = (phrase(thing.name, thing.colour) for thing in scene.things)
        text = _related(scene.relation, one, two, pick)
    else:
        text = phrase(first.name, first.colour, len(scene.things), scene.size)
    if scene.place:
        text = f"{text} {_place(scene.place, pick)}"
    if scene.ground != Ground():
        text += _before(scene.ground, word, pick, draw)
    opening = names.opening.get(first.row, "") if first.form == "picture" else ""  # an outline is no 3d render
    return _styled(text, opening, draw)


def _before(
    ground: Ground, word: Callable[[str], str], pick: Callable[[Sequence[str]], str], draw: np.random.Generator
) -> str:
    """Return the words for a ground, with what joins them to the rest."""
    if ground.form in _LANDSCAPES:
        return f" {pick(_LANDSCAPES[ground.form])}"
    colour, form = word(ground.colour), pick(_GROUNDS)
    if ground.form == "gradient" and draw.random() < 0.5:
        colour = f"{colour} gradient"
    made = re.sub(r"\ba orange", "an orange", form.format(colour))
    return f", {made}" if made.startswith(colour) else f" {made}"


def _related(relation: str, one: str, two: str, pick: Callable[[Sequence[str]], str]) -> str:
    both = {
        "and": (f"{one} and {two}", f"{two} and {one}", f"{one} with {two}", f"{one} next to {two}"),
        "left of": (f"{one} to the left of {two}", f"{one} left of {two}", f"{two} to the right of {one}"),
        "right of": (f"{one} to the right of {two}", f"{one} right of {two}", f"{two} to the left of {one}"),
        "above": (f"{one} above {two}", f"{one} over {two}", f"{two} below {one}", f"{two} under {one}"),
        "on": (f"{one} on {two}", f"{one} on top of {two}"),
    }
    return pick(both[relation])


def _place(place: str, pick: Callable[[Sequence[str]], str]) -> str:
    if " " in place:
        return pick((f"in the {place} corner", f"in the {place}", f"at the {place}", f"at {place}"))
    if place in ("left", "right"):
        return pick((f"on the {place}", f"on the {place} side", f"at the {place}"))
    return pick((f"at the {place}", f"in the {place} half", f"near the {place}"))


def _styled(text: str, opening: str, draw: np.random.Generator) -> str:
    """Return the text with the style's words in front, behind, or without."""
    share = draw.random()
    if not opening or share < 0.4:
        return text
    if share < 0.75:
        return f"{opening} {text}"
    return f"{text}, {re.sub(r'^(a|an|the) | of$', '', opening)}"


def false_scenes(scene: Scene, others: Sequence[str], colours: Sequence[str], draw: np.random.Generator) -> list[Scene]:
    """Return scenes that differ from `scene` in one thing that is named: captions of them are false of its picture.

    Args:
        scene: the true one.
        others: names of other things.
        colours: names of colours.
        draw: of what is changed to what.
    """

    def another(choices: Sequence[str], than: Sequence[str | None]) -> list[str]:
        left = [choice for choice in choices if choice not in than]
        return [left[int(draw.integers(len(left)))]] if left else []

    return [*_other_looks(scene, colours, another), *_other_things(scene, others, another, draw)]


_Another = Callable[[Sequence[str], Sequence[str | None]], list[str]]
"""(choices, those that are not meant) -> one of the rest, drawn; none where nothing is left."""


def _other_looks(scene: Scene, colours: Sequence[str], another: _Another) -> Iterator[Scene]:
    """Yield scenes with another colour, ground or place."""

    def painted(old: str | None, new: str | None) -> tuple[Placed, ...]:
        return tuple(replace(thing, colour=new) if thing.colour == old else thing for thing in scene.things)

    first, ground = scene.things[0], scene.ground
    coloured = ground.form in ("plain", "gradient") and ground.colour != "white"
    if first.colour is not None:
        for colour in another(colours, [thing.colour for thing in scene.things]):
            yield replace(scene, things=painted(first.colour, colour))
    if coloured:
        for colour in another(colours, [ground.colour]):
            yield replace(scene, ground=replace(ground, colour=colour))
    if coloured and first.colour is not None:  # the two colours exchanged
        yield replace(scene, ground=replace(ground, colour=first.colour), things=painted(first.colour, ground.colour))
    if ground.form in _LANDSCAPES:
        for form in another([*_LANDSCAPES], [ground.form]):
            yield replace(scene, ground=replace(ground, form=form))
    if scene.place:
        yield replace(scene, place=" ".join(_OPPOSITE.get(part, part) for part in scene.place.split()))


def _other_things(scene: Scene, others: Sequence[str], another: _Another, draw: np.random.Generator) -> Iterator[Scene]:
    """Yield scenes with other things, another number of them, or a pair's two exchanged."""
    first, names = scene.things[0], [thing.name for thing in scene.things]
    if scene.relation:
        second = scene.things[1]
        for name in another(others, names):
            yield replace(scene, things=(first, replace(second, name=name)))
        for name in another(others, names):
            yield replace(scene, things=(replace(first, name=name), second))
        if scene.relation != "and" or first.colour != second.colour:  # the two names exchanged
            yield replace(scene, things=(replace(first, name=names[1]), replace(second, name=names[0])))
        return
    if len(names) > 1:
        count = [number for number in COUNTS if number != len(names)][int(draw.integers(2))]
        yield replace(scene, things=(first,) * count)
        others = [name for name in others if name.isalpha() and not name.endswith("s")]  # that have a plain plural
    for name in another(others, names):
        yield replace(scene, things=tuple(replace(thing, name=name) for thing in scene.things))
