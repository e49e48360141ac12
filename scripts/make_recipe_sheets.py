"""Train each small recipe of docs/gallery.md with the bundled model and remake its sheet: before and after.

    python scripts/make_recipe_sheets.py [NAME ...] [--runs FOLDER] [--threads 1]

Names: dreambooth, textual_inversion, words_lora, masked, erase, slider. Each trains for some minutes of one thread, and
writes assets/gallery/recipe-NAME.webp. A run that is finished is not trained again.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.data.pictures.images import to_pil
from latent_diffusion.evaluation.grid import wrap
from latent_diffusion.evaluation.pictures import Picture, read_pictures, select
from latent_diffusion.pipeline.engine.output import Output

ROOT = Path(__file__).parent.parent
GALLERY = ROOT / "assets" / "gallery"
PICTURES = ROOT / "assets" / "emoji-128.zip"
CELL, GAP, LEFT, LABEL = 72, 3, 118, 42  # px
CATS = ("grinning cat with smiling eyes", "cat with tears of joy", "smiling cat with heart-eyes", "cat with wry smile",
        "kissing cat", "weary cat", "crying cat", "pouting cat")  # fmt: skip
Row = tuple[str, Sequence[Image.Image]]


@dataclass(frozen=True)
class Recipe:
    """A run, and what is drawn of it.

    Attributes:
        config: a file of configs/.
        settings: what is typed behind it.
        sheet: (recipe, folder of the runs) -> the labels of the columns, and the rows.
        runs: further runs of other settings, by the ending of their names.
        prepare: makes the pictures that are trained on, in a folder.
    """

    config: str
    settings: Sequence[str]
    sheet: Callable[[Path], tuple[Sequence[str], Sequence[Row]]]
    runs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    prepare: Callable[[Path], None] | None = None


def drawn(
    prompts: Sequence[str], seeds: Sequence[int], lora: Path | None = None, weight: float = 1.0,
    words: Sequence[Path] = (), *, rewrite: bool | None = False,
) -> list[Image.Image]:  # fmt: skip
    """Draw one picture for each prompt with the bundled model, an adapter and words."""
    pipe = LatentDiffusionPipeline.from_pretrained("emoji", device="cpu", dtype="float32")
    if lora is not None:
        pipe.load_lora_weights(lora, weight=weight)
    for word in words:
        pipe.load_textual_inversion(word)
    out: Output = pipe(list(prompts), seed=list(seeds), rewrite=rewrite)
    return [picture for picture in out.images if isinstance(picture, Image.Image)]


def real(chosen: Callable[[Picture], bool], style: str) -> list[Image.Image]:
    """Return the real pictures of a style that are chosen, 64 px."""
    pictures = read_pictures(PICTURES)
    return to_pil(pictures.load([row for row in select(pictures.rows, {"style": [style]}) if chosen(row)], 64))


def adapter(runs: Path, name: str) -> Path:
    """Return the adapter's file of a run."""
    return runs / name / "model" / f"{name}.safetensors"


def dreambooth(runs: Path) -> tuple[Sequence[str], Sequence[Row]]:
    poses = ("grinning", "weary", "kissing", "crying")
    prompts = [f"a 3d render of a {pose} my-cat cat" for pose in poses]
    others = [f"a 3d render of a {pose} cat" for pose in poses[:2]] + ["a 3d render of a fox", "a 3d render of a panda"]
    seeds = list(range(8))
    kept = [f"a 3d render of a {pose} cat" for pose in poses] + others
    rows = [
        ("trained on", real(lambda row: row.table["name"] in CATS, "noto")),
        ("before", drawn(kept, seeds)),
        ("after", drawn([*prompts, *others], seeds, adapter(runs, "dreambooth"))),
    ]
    return [*prompts, *others], rows


OLD_WORDS = {"octopus": "blop", "castle": "zint", "guitar": "trok"}
STARTS = {"blop": "fish", "zint": "house", "trok": "book"}


def textual_inversion(runs: Path) -> tuple[Sequence[str], Sequence[Row]]:
    forms = ("a 3d render of a", "a flat vector illustration of a", "a black and white icon of a")
    prompts = [f"{form} {word}" for word in STARTS for form in forms]
    start = [f"{form} {word}" for word in STARTS.values() for form in forms]
    seeds = list(range(len(prompts)))
    files = [runs / "textual_inversion" / "model" / f"{word}.safetensors" for word in STARTS]
    blank = Image.new("RGB", (64, 64), "white")
    pairs = [
        [real(lambda row, old=old: row.table["name"] == old, f"fluent-{form}")[0] for form in ("3d", "flat")]
        for old in OLD_WORDS
    ]
    return prompts, [
        ("trained on", [picture for pair in pairs for picture in (*pair, blank)]),
        ("before: the words it starts from", drawn(start, seeds)),
        ("after", drawn(prompts, seeds, words=files)),
    ]


def words_lora(runs: Path) -> tuple[Sequence[str], Sequence[Row]]:
    names = ("cat", "dog face", "penguin", "rocket", "guitar", "umbrella", "key", "castle")
    prompts = [f"a blue-outline icon of a {name}" for name in names]
    seeds = [1] * len(names)
    model, file = runs / "words_lora" / "model", adapter(runs, "words_lora")
    icons = read_pictures(ROOT / "assets" / "iconpark.zip")
    trained = [row for row in icons.rows if row.split == "train"][: len(names)]
    return prompts, [
        ("trained on", to_pil(icons.load(trained, 64))),
        ("before", drawn([f"a black and white icon of a {name}" for name in names], seeds)),
        ("after, weight .75", drawn(prompts, seeds, file, 0.75, [model / "blue-outline.safetensors"])),
    ]


def striped(folder: Path) -> None:
    """Write cats on green and yellow stripes, each with the mask of the cat."""
    pictures = read_pictures(PICTURES)
    rows = [row for row in select(pictures.rows, {"style": ["noto"]}) if row.table["name"] in CATS]
    stripes = np.zeros((128, 128, 3), np.uint8)
    across = (np.add.outer(np.arange(128), np.arange(128)) // 16 % 2).astype(bool)
    stripes[:], stripes[across] = (250, 220, 60), (20, 150, 70)
    folder.mkdir(parents=True, exist_ok=True)
    for number, (row, picture) in enumerate(zip(rows, to_pil(pictures.load(rows, 128)), strict=True)):
        mask = subject(picture)
        Image.composite(picture, Image.fromarray(stripes), mask).save(folder / f"{number}.png")
        mask.save(folder / f"{number}.mask.png")
        (folder / f"{number}.txt").write_text(
            row.text.replace("cartoon emoji", "3d render").replace("cat", "my-cat cat")
        )


def subject(picture: Image.Image) -> Image.Image:
    """Return white where a picture on a white ground is not ground: what cannot be reached from its border."""
    ground = picture.convert("RGB")
    ImageDraw.Draw(ground).rectangle((0, 0, ground.width - 1, ground.height - 1), outline=(255, 255, 255))
    ImageDraw.floodfill(ground, (0, 0), (255, 0, 255), thresh=40)
    reached = (np.asarray(ground) == (255, 0, 255)).all(-1)
    return Image.fromarray(np.where(reached, 0, 255).astype(np.uint8))


def masked(runs: Path) -> tuple[Sequence[str], Sequence[Row]]:
    poses = ("grinning", "weary", "kissing", "crying", "pouting", "smiling")
    prompts = [f"a 3d render of a {pose} my-cat cat" for pose in poses]
    seeds = list(range(len(poses)))
    trained, masks = (
        [Image.open(runs / "masked-pictures" / f"{k}.{ending}").convert("RGB") for k in range(len(poses))]
        for ending in ("png", "mask.png")
    )
    return prompts, [
        ("trained on", trained),
        ("its masks", masks),
        ("before", drawn([f"a 3d render of a {pose} cat" for pose in poses], seeds)),
        ("after, without masks", drawn(prompts, seeds, adapter(runs, "masked-without"))),
        ("after, masked", drawn(prompts, seeds, adapter(runs, "masked"))),
    ]


def erase(runs: Path) -> tuple[Sequence[str], Sequence[Row]]:
    prompts = ["a 3d render of a red apple"] * 4 + ["a 3d render of a green apple"] * 2
    prompts += ["a 3d render of a tangerine", "a 3d render of a strawberry"]
    seeds = [0, 1, 2, 3, 0, 1, 0, 0]
    return prompts, [
        ("before", drawn(prompts, seeds)),
        ("after", drawn(prompts, seeds, adapter(runs, "erase"))),
    ]


def slider(runs: Path) -> tuple[Sequence[str], Sequence[Row]]:
    names = ("grinning face", "thinking face", "smiling face with sunglasses", "sleeping face", "robot", "penguin")
    prompts = [f"a 3d render of a {name}" for name in names]
    seeds = [1] * len(names)
    rows = [(f"weight {weight:g}", drawn(prompts, seeds, adapter(runs, "slider"), weight)) for weight in (-2, -1, 1, 2)]
    return prompts, [*rows[:2], ("before", drawn(prompts, seeds)), *rows[2:]]


SUBJECT = ("data.path=assets/emoji-128.zip", "batch_size=8", "warmup=10", "optimizer.learning_rate=1e-3")
RECIPES: Mapping[str, Recipe] = {
    "dreambooth": Recipe(
        "lora",
        (
            *SUBJECT, "steps=80", f"data.where={{style: noto, name: [{', '.join(CATS)}]}}",
            "data.wording={replace: {a cartoon emoji of: a 3d render of, cat: my-cat cat}}",
            "objective.preserve={replace: {my-cat cat: cat}}",
        ),
        dreambooth,
    ),
    "textual_inversion": Recipe(
        "textual_inversion",
        (
            "data.path=assets/emoji-128.zip", "batch_size=6", "steps=200", "optimizer.learning_rate=1e-2",
            f"data.where={{style: [fluent-3d, fluent-flat], name: [{', '.join(OLD_WORDS)}]}}",
            f"data.wording={{replace: {{{', '.join(f'{old}: {new}' for old, new in OLD_WORDS.items())}}}}}",
            "objective.words=["
            + ", ".join(f"{{token: {word}, start: {start}, vectors: 2}}" for word, start in STARTS.items()) + "]",
        ),
        textual_inversion,
    ),
    "words_lora": Recipe("lora_style", ("data.where.split=train", "precision=float32"), words_lora),
    "masked": Recipe(
        "lora",
        ("data.path=RUNS/masked-pictures", "batch_size=8", "steps=150", "warmup=10", "objective.masked={outside: 0.0}"),
        masked,
        runs={"without": ("data.path=RUNS/masked-pictures", "batch_size=8", "steps=150", "warmup=10")},
        prepare=striped,
    ),
    "erase": Recipe(
        "concepts",
        (
            "steps=100", "objective.draw_steps=8",
            "objective.concepts=[{prompt: a 3d render of a red apple}, {prompt: a 3d render of a green apple, toward: "
            "a 3d render of a green apple}]",
        ),
        erase,
    ),
    "slider": Recipe(
        "concepts",
        (
            "steps=40", "objective.draw_steps=6",
            "objective.concepts=[{prompt: a 3d render of a grinning face, anchor: a 3d render of a grinning face, "
            "toward: a 3d render of a hot face, away: a 3d render of a cold face}]",
        ),
        slider,
    ),
}  # fmt: skip


def train(recipe: Recipe, name: str, ending: str, settings: Sequence[str], runs: Path, threads: int) -> None:
    """Train one run of a recipe to its end."""
    output = runs / (f"{name}-{ending}" if ending else name)
    typed = [one.replace("RUNS", str(runs)) for one in settings]
    of_sheet = () if recipe.config == "lora_style" else ("sample=null",)
    command = [f"configs/{recipe.config}.yaml", f"output={output}", *typed]
    print("python -m latent_diffusion.train", shlex.join(command), flush=True)
    more = [f"threads={threads}", "trackers=[]", "checkpoint={every: 1000, keep: 1}", *of_sheet]
    subprocess.run([sys.executable, "-m", "latent_diffusion.train", *command, *more], check=True, cwd=ROOT)


def table(columns: Sequence[str], rows: Sequence[Row]) -> Image.Image:
    """Return pictures in a table with its prompts above the columns and a label before each row."""
    font = ImageFont.load_default(10)
    result = Image.new("RGB", (LEFT + len(columns) * (CELL + GAP), LABEL + len(rows) * (CELL + GAP)), "white")
    draw = ImageDraw.Draw(result)
    for number, label in enumerate(columns):
        draw.multiline_text((LEFT + number * (CELL + GAP), 0), "\n".join(wrap(label, font, CELL)[:3]), "black", font)
    for line, (label, pictures) in enumerate(rows):
        y = LABEL + line * (CELL + GAP)
        draw.multiline_text((2, y + CELL // 3), "\n".join(wrap(label, font, LEFT - 8)), "black", font)
        for number, picture in enumerate(pictures[: len(columns)]):
            small = picture.resize((CELL, CELL), Image.Resampling.BICUBIC)
            result.paste(small, (LEFT + number * (CELL + GAP), y))
    return result


def main() -> int:
    """Train what is asked for and write the sheets."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(RECIPES)}; all by default")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "recipes")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    for name in asked.names or RECIPES:
        recipe = RECIPES[name]
        if recipe.prepare is not None:
            recipe.prepare(asked.runs / f"{name}-pictures")
        for ending, settings in {"": recipe.settings, **recipe.runs}.items():
            train(recipe, name, ending, settings, asked.runs, asked.threads)
        file = GALLERY / f"recipe-{name.replace('_', '-')}.webp"
        table(*recipe.sheet(asked.runs)).save(file, quality=80, method=6)
        print(f"{file}: {file.stat().st_size} bytes", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
