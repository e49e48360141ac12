"""Do guidance and negative prompts do what they say? Measured on what the bundled model draws.

    python -m experiments.judge_guidance [MODEL] [--data assets/emoji-128.zip] [--prompts 24] [--output FILE.json]

Guidance: prompts of the training set at scales 1 to 10, judged as `latent-diffusion evaluate` does, with the pictures'
mean chroma (largest minus smallest of red, green and blue, 0 to 1) and the share of channel values that are clipped.
Negative prompts: the same seeds with and without "NAME", a style, and "red", at two scales; what is named must become
rarer.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from experiments.judge_prompts import Asked, Judge, questions
from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.evaluation.pictures import RealPictures, read_pictures

SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
PULLS = (1.5, 5.0)
STYLE_WORDS = "a black and white icon"
RED = tuple(
    f"a 3d render of {thing}"
    for thing in (
        "a red apple",
        "a tomato",
        "a strawberry",
        "a rose",
        "a fire engine",
        "cherries",
        "a red heart",
        "a lobster",
    )
)
Row = dict[str, float]


def colours(images: Tensor) -> Row:
    """Return mean chroma and the share of values at an end of the range; images (B, 3, H, W) in [-1, 1]."""
    chroma = (images.amax(1) - images.amin(1)).mean() / 2
    not_white = images.amin(1, keepdim=True) < 0.9
    clipped = ((images.abs() > 0.995) & not_white).float().sum() / not_white.expand_as(images).float().sum()
    return {"chroma": float(chroma), "clipped": float(clipped)}


def redness(images: Tensor) -> float:
    """Return the share of pixels that are red: by more than a fifth of the range above green and blue."""
    red, green, blue = images.unbind(1)
    return float(((red - green > 0.4) & (red - blue > 0.4)).float().mean())


def guidance(judge: Judge, pictures: RealPictures, asked: Sequence[Asked]) -> dict[str, Row]:
    """Return what each scale gives, and the colours of the real pictures."""
    rows, seeds = [one.picture for one in asked], list(range(len(asked)))
    found = {"real pictures": colours(pictures.load(rows, judge.pipe.defaults.height))}
    for scale in SCALES:
        images = judge.draw([row.text for row in rows], seeds, guidance_scale=scale)
        found[f"{scale:g}"] = judge.styled(images, rows) | colours(images)
        print(scale, found[f"{scale:g}"], flush=True)
    return found


def negatives(judge: Judge, asked: Sequence[Asked]) -> dict[str, Row]:
    """Return the rates without and with the negative prompt at each scale."""
    rows, seeds = [one.picture for one in asked], list(range(len(asked)))
    found: dict[str, Row] = {}
    for scale in PULLS:
        here: Row = {}
        for label, without in (("without", [""] * len(asked)), ("with", [one.name for one in asked])):
            images = judge.draw([row.text for row in rows], seeds, guidance_scale=scale, negative_prompt=without)
            here[f"name, {label}"] = judge.styled(images, rows)["name1"]
        for label, words in (("without", ""), ("with", STYLE_WORDS)):
            names = [one.phrase for one in asked]  # no style: the model is free to choose
            images = judge.draw(names, seeds, guidance_scale=scale, negative_prompt=words, rewrite=False)
            here[f"style, {label}"] = judge.free(images, rows)["fluent-mono"]
        for label, words in (("without", ""), ("with", "red")):
            images = judge.draw(RED, seeds[: len(RED)], guidance_scale=scale, negative_prompt=words)
            here[f"red, {label}"] = redness(images)
        found[f"{scale:g}"] = here
        print(scale, here, flush=True)
    return found


def table(rows: dict[str, Row]) -> str:
    """Return a Markdown table; what a row lacks stays empty."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for label, row in rows.items():
        lines.append(f"| {label} | " + " | ".join(f"{row[name]:.2f}" if name in row else "" for name in columns) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="emoji")
    parser.add_argument("--data", default="assets/emoji-128.zip")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    pictures = read_pictures(given.data)
    asked = questions(pictures, given.model, "train", given.prompts)
    judge = Judge(LatentDiffusionPipeline.from_pretrained(given.model), pictures)
    results = {"guidance": guidance(judge, pictures, asked), "negative": negatives(judge, asked)}
    if given.output:
        given.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for rows in results.values():
        print(table(rows), end="\n\n")


if __name__ == "__main__":
    main()
