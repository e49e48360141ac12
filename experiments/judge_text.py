"""Whether a model's CLIP tells a true prompt from false ones: texts that carry colours, grounds, counts and places.

    python -m experiments.judge_text assets/emoji-first runs/emoji/composed/clip/model

Pictures are composed of real ones for the prompts of assets/composition.jsonl, which are never trained on. The prompt
is searched among itself and those that differ in the value alone (six other colours, seven other places, two other
counts), of a pair among those with another thing in place of one of the two.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from latent_diffusion.checkpoint.folder.clip_folder import load_clip
from latent_diffusion.data.composed.drawing import PLACES
from latent_diffusion.data.composed.stock import Stock
from latent_diffusion.data.composed.words import COUNTS, with_article
from latent_diffusion.data.settings import ComposedConfig, ReadingConfig
from latent_diffusion.data.sources.imagefolder import FolderSource
from latent_diffusion.evaluation.composition.prompts import KINDS, Asked, answer, read_asked
from scripts.make_composition import COLOURS, STYLES, TYPED, place_words

ASSETS = Path(__file__).parent.parent / "assets"
OTHER_THINGS = 6


def false_prompts(asked: Asked, names: list[str], draw: np.random.Generator) -> list[str]:
    """Return prompts that differ from `asked` in one value."""
    if asked.kind in ("colour", "ground"):
        old = f" {asked.value} "
        prompt = asked.prompt.replace(f" an{old}", f" a{old}")
        texts = [prompt.replace(old, f" {colour} ") for colour in COLOURS if colour != asked.value]
        return [text.replace(" a orange ", " an orange ") for text in texts]
    if asked.kind == "count":
        word = COUNTS[int(asked.value)][0]
        return [asked.prompt.replace(word, other) for other, _ in COUNTS.values() if other != word]
    if asked.kind == "place":
        own = place_words(asked.value)
        return [asked.prompt.removesuffix(own) + place_words(other) for other in PLACES if other != asked.value]
    found = []
    for k in range(OTHER_THINGS):
        old = TYPED.get(asked.names[k % 2], asked.names[k % 2])
        new = names[int(draw.integers(len(names)))]
        if new not in asked.names:
            found.append(asked.prompt.replace(with_article(old), with_article(new)))
    return found


def main(folders: list[str]) -> None:
    asked = read_asked(ASSETS / "composition.jsonl")
    source = FolderSource.open(str(ASSETS / "emoji-128.zip"), ReadingConfig())
    train = np.array([k for k in range(len(source)) if source.row(k)["split"] == "train"])
    stock = Stock(source, train, ComposedConfig(), 64)
    names = sorted({name for one in asked for name in one.names})
    made = [(one, answer(one, stock, 64, STYLES.get(one.style, STYLES["fluent-3d"]))) for one in asked]
    found = [(one, image) for one, image in made if image is not None]
    texts = [[one.prompt, *false_prompts(one, names, np.random.default_rng(k))] for k, (one, _) in enumerate(found)]
    chance = {
        kind: np.mean([1 / len(t) for (one, _), t in zip(found, texts, strict=True) if one.kind == kind])
        for kind in KINDS
    }
    print(f"| model | {' | '.join(KINDS)} |\n|---|{'---|' * len(KINDS)}")
    print(f"| chance | {' | '.join(f'{chance[kind]:.2f}' for kind in KINDS)} |")
    for folder in folders:
        clip = load_clip(Path(folder)).eval()
        images = clip.image_features(torch.stack([image for _, image in found]))
        right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
        for (one, _), own, image in zip(found, texts, images, strict=True):
            right[one.kind].append(int((clip.text_features(own) @ image).argmax()) == 0)
        print(f"| {folder} | {' | '.join(f'{np.mean(right[kind]):.2f}' for kind in KINDS)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
