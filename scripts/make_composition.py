"""Write the composition test: assets/composition.jsonl, a hundred prompts of each kind, the same in every run.

    python scripts/make_composition.py

Things are single-word names of assets/emoji-128.zip that are cut out cleanly, in one part, in every style of `STYLES`.
A colour or ground that any of their pictures has by itself is not asked for. The combinations are never composed in
training: `data.composed.held_out` names the file.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from latent_diffusion.data.composed.colours import TARGETS
from latent_diffusion.data.composed.drawing import PLACES
from latent_diffusion.data.composed.stock import Stock
from latent_diffusion.data.composed.words import COUNTS, plural, with_article
from latent_diffusion.data.settings import ComposedConfig, ReadingConfig
from latent_diffusion.data.sources.imagefolder import FolderSource
from latent_diffusion.randomness import permutation

ROOT = Path(__file__).parent.parent
STYLES = {"fluent-3d": "a 3d render of", "fluent-flat": "a flat vector illustration of"}
OTHERS = ("noto", "noto-v1")
GROUPS = ("animals-nature", "food-drink", "objects", "travel-places", "activities")
COLOURS = [name for name in TARGETS if name not in ("black", "brown")]
NEAR = {"orange": {"brown", "yellow"}, "red": {"pink", "orange"}, "blue": {"turquoise", "purple"}}
TYPED = {"automobile": "car", "airplane": "plane", "bicycle": "bike", "television": "tv"}
NO_THINGS = {"camping", "wedding", "hamsa", "kaaba", "memo", "construction", "dvd"}
EACH = 100


def things(source: FolderSource) -> dict[str, set[str]]:
    """Return the names that are asked for, and the colours that their pictures have."""
    rows = [k for k in range(len(source)) if source.row(k)["split"] == "train"]
    stock = Stock(source, np.array(rows), ComposedConfig(), 64)
    of: dict[str, dict[str, int]] = {}
    for k, name in stock.name.items():
        if source.row(k)["group"] in GROUPS and name.isalpha() and name.islower() and name not in NO_THINGS:
            of.setdefault(name, {})[str(source.row(k)["style"])] = k
    found = {}
    for name, styles in sorted(of.items()):
        cuts = [stock.cutout(styles[style]) for style in STYLES if style in styles]
        if len(cuts) < len(STYLES) or any(cut is None or not cut.clean or cut.parts != 1 for cut in cuts):
            continue
        able = all(stock.coloured(styles[style], colour) is not None for style in STYLES for colour in COLOURS)
        if able:
            seen = [stock.cutout(styles[style]) for style in (*STYLES, *OTHERS) if style in styles]
            found[name] = {colour for cut in seen if cut is not None for colour in cut.shows}
    return found


def in_turn(names: list[str], values: list[str], purpose: str) -> Iterator[tuple[str, str]]:
    """Yield every value in turn with names in a drawn order, which begins again at its end."""
    for number in range(len(names) * len(values)):
        turn, place = divmod(number, len(names))
        order = permutation(0, f"composition {purpose}", turn, len(names))
        yield names[order[place]], values[number % len(values)]


def main() -> None:
    source = FolderSource.open(str(ROOT / "assets" / "emoji-128.zip"), ReadingConfig())
    own = things(source)
    names = sorted(own)
    known = {str(source.row(k)["name"]).lower() for k in range(len(source))}  # "red envelope" is one
    lines: list[str] = []

    def add(kind: str, number: int, phrase: str, value: str, of: list[str]) -> None:
        style = ("", "fluent-3d", "", "fluent-flat")[number % 4]
        prompt = f"{STYLES[style]} {phrase}" if style else phrase
        row = {"kind": kind, "prompt": prompt, "style": style, "value": value, "names": of}
        lines.append(json.dumps(row))

    def typed(name: str) -> str:
        return TYPED.get(name, name)

    forms = {
        "colour": lambda name, value: with_article(f"{value} {typed(name)}"),
        "ground": lambda name, value: f"{with_article(typed(name))} on {with_article(value)} background",
        "count": lambda name, value: f"{COUNTS[int(value)][0]} {plural(typed(name))}",
        "place": lambda name, value: f"{with_article(typed(name))} {place_words(value)}",
    }
    values = {"colour": COLOURS, "ground": COLOURS, "count": [*map(str, COUNTS)], "place": [*PLACES]}
    for kind, form in forms.items():
        asked: set[tuple[str, str]] = set()
        for name, value in in_turn(names, values[kind], kind):
            natural = own[name] | {near for colour in own[name] for near in NEAR.get(colour, ())}
            new = value not in natural and f"{value} {name}" not in known and (name, value) not in asked
            if len(asked) < EACH and new:
                add(kind, len(asked), form(name, value), value, [name])
                asked.add((name, value))
    first, second = (permutation(0, f"composition pair {k}", 0, len(names)) for k in range(2))
    pairs = [(names[a], names[b]) for a, b in zip([*first, *first], [*second, *np.roll(second, 7)]) if a != b]
    for number, (one, two) in enumerate(pairs[:EACH]):
        add("pair", number, f"{with_article(typed(one))} and {with_article(typed(two))}", "", [one, two])
    (ROOT / "assets" / "composition.jsonl").write_text("\n".join(lines) + "\n")
    print(f"{len(names)} things, {len(lines)} prompts")


def place_words(place: str) -> str:
    """Return the words for a place."""
    return (
        f"in the {place} corner"
        if " " in place
        else f"on the {place}"
        if place in ("left", "right")
        else f"at the {place}"
    )


if __name__ == "__main__":
    main()
