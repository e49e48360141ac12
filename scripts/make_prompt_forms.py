"""Write what the bundled model was asked in training: prompts.json and names.txt of its folder.

    python scripts/make_prompt_forms.py [latent_diffusion/bundled/emoji]

Names are those of the pictures it was trained on (its `training.json`), from the captions of assets/emoji-128.zip.
Other words for them are keywords of the data set (Unicode's): those that a single one of these names has, and of those
that several have what most people mean by them (`OTHERS`).
"""

import re
import sys
from pathlib import Path

from latent_diffusion.checkpoint.prompt_forms import PromptForms, write_prompt_forms
from latent_diffusion.data.rows.metadata import values_of
from latent_diffusion.evaluation.pictures import read_pictures, select
from latent_diffusion.evaluation.trained_on import read_trained_on
from latent_diffusion.prompts.rewrite import SAYS_NOTHING

ROOT = Path(__file__).parent.parent
STYLES = {
    "a 3d render of": ("3d render", "3d rendering", "3d rendered", "3d model", "3d icon", "3d emoji", "3d", "cgi"),
    "a flat vector illustration of": (
        *("flat vector illustration", "flat illustration", "vector illustration", "flat icon", "flat design"),
        *("flat vector", "vector art", "vector icon", "flat", "vector", "illustration", "cartoon", "clip art"),
    ),
    "a black and white icon of": (
        *("black and white icon", "black and white", "black-and-white", "b&w", "monochrome icon", "monochrome"),
        *("line icon", "line drawing", "line art", "outline icon", "outline", "pictogram", "silhouette"),
    ),
}
OTHERS = """
red apple: apple; soccer ball: ball, soccer; beer mug: beer; bicycle: bike; sailboat: boat; hamburger: burger
birthday cake: cake; automobile: car; money bag: cash; movie camera: cinema; t-shirt: clothes, shirt
hot beverage: coffee; cocktail glass: cocktail; laptop: computer; ear of corn: corn; crying face: crying, sad
teacup without handle: cup; T-Rex: dinosaur; doughnut: donut; tropical drink: drink
globe showing Europe-Africa: earth, world; e-mail: email; wrapped gift: gift; file folder: folder
french fries: fries; gem stone: gem; water pistol: gun; grinning face: happy; smiling face with hearts: love
bug: insect; kitchen knife: knife; light bulb: idea; maple leaf: leaf; envelope: letter; high voltage: lightning
military medal: medal; money with wings: money; full moon: moon; studio microphone: mic; musical note: music
clapper board: movie; mobile phone: phone; airplane: plane; pile of poo: poop; potted plant: plant
bouquet: flower; police car: police; dog face: puppy; cat face: kitten; cloud with rain: rain; motorway: road
water wave: ocean, wave; running shoe: shoe, sneaker; sleeping face: sleep; cut of meat: steak
flying saucer: ufo; snow-capped mountain: snow; deciduous tree: tree; delivery truck: truck; television: tv
wastebasket: trash; wine glass: wine; teapot: tea; alien monster: monster; desktop computer: desktop
rabbit face: bunny; bread: toast; carousel horse: carousel; sewing needle: needle; heart suit: heart
house with garden: home; hot dog: hotdog
"""
"""Names, and words for them: those that most people mean by the word."""
SHORTEST = 4  # letters of a word that stands for a name; shorter ones ("can", "you") mostly mean something else


def main(folder: Path) -> None:
    pictures = read_pictures(ROOT / "assets" / "emoji-128.zip")
    rows = [row for row in select(pictures.rows, read_trained_on(folder).where) if row.split == "train"]
    named: dict[str, str] = {}
    keywords: dict[str, list[str]] = {}
    for row in rows:
        opening = next(words for words in STYLES if row.text.startswith(words))
        name = re.sub(r"^(a|an|the) ", "", row.text.removeprefix(opening).strip())
        if name.lower() not in named:
            named[name.lower()] = name
            for word in sorted(word.lower() for word in values_of(row.table, "keywords")):
                keywords.setdefault(word, []).append(name)
    for name, _, words in (pair.partition(":") for pair in re.split(r"[;\n]", OTHERS) if pair.strip()):
        for word in map(str.strip, words.split(",")):
            if word in named or name.strip() not in keywords.get(word, []):
                sys.exit(f"error: {word!r} is a name, or no keyword of {name.strip()!r}")
            named[word] = name.strip()
    for word, names in keywords.items():
        if word in SAYS_NOTHING:
            continue
        stems = [keywords.get(word[:length], names) for length in range(SHORTEST, len(word))]
        if len(names) == 1 and len(word) >= SHORTEST and word.isalpha() and all(stem == names for stem in stems):
            named.setdefault(word, names[0])  # not "laughing" of one cat, where "laugh" is said of six faces
    write_prompt_forms(PromptForms(STYLES, next(iter(STYLES)), dict(sorted(named.items()))), folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "latent_diffusion" / "bundled" / "emoji")
