"""Has an adapter taught the icons' style, and are things that it never saw still themselves?

    python -m experiments.judge_finetune emoji ADAPTER WORD assets/iconpark.zip assets/emoji-128.zip OUTPUT [WEIGHT]

ADAPTER and WORD are the files that `configs/lora_style.yaml` trains. The 50 concepts of `icon_concepts.txt` are none
of the 64 icons, and the model has all of them. Each is drawn in the base's own three styles, then in the new one.

    style    share of the drawings that `icon_style.py` accepts; beside it, what the rule accepts of held-out pictures
    name1    share whose concept is the nearest of some 1,460 among real pictures of the style that was asked for. In
    name5    the new style there are none of most concepts: these drawings are made black and white (each pixel's
             largest channel, by which blue becomes white) and searched among `fluent-mono`
    icon1    the same among the 114 real icons, for the 46 concepts that have one

Writes OUTPUT.json and OUTPUT.png: for each concept the real icon, one drawn before (black and white), one drawn after.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from experiments.icon_style import IconStyle
from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.data.pictures.images import to_pil
from latent_diffusion.evaluation.features import Features, extract
from latent_diffusion.evaluation.gallery import COPIES, features_of
from latent_diffusion.evaluation.grid import Column, draw_grid
from latent_diffusion.evaluation.pictures import Picture, RealPictures, read_pictures
from latent_diffusion.evaluation.retrieval import Retrieval
from latent_diffusion.models.efficientnet_lite import EfficientNetLite0, load_efficientnet_lite0

CONCEPTS = (Path(__file__).parent / "icon_concepts.txt").read_text().split("\n")[:-1]
FORMS = {
    "fluent-3d": "a 3d render of {}",
    "fluent-flat": "a flat vector illustration of {}",
    "fluent-mono": "a black and white icon of {}",
    "icon-park": "a blue-outline icon of {}",
}
BATCH = 25
OTHERS = 250  # pictures of each other style for the style rule, half to fit it and half to try it
UNDRAWN = ("people-body", "symbols", "flags")


def drawn(pipe: LatentDiffusionPipeline, form: str) -> Tensor:
    """Return a picture of each concept, (50, 3, 64, 64) in [-1, 1]; concept k has the seed k."""
    prompts = [form.format(concept) for concept in CONCEPTS]
    made = []
    for k in range(0, len(prompts), BATCH):
        seeds = [*range(k, min(k + BATCH, len(prompts)))]
        out = pipe(prompts[k : k + BATCH], seed=seeds, rewrite=False, output_type="pt").images
        assert isinstance(out, Tensor)
        made.append(out * 2 - 1)
    return torch.cat(made)


def copied(pipe: LatentDiffusionPipeline, images: Tensor) -> Tensor:
    """Return copies by the model's autoencoder, the best that the model can draw."""
    autoencoder = pipe.components.autoencoder
    with torch.no_grad():
        return torch.cat([autoencoder.to_images(autoencoder.to_latents(b)) for b in images.split(BATCH)]).clamp(-1, 1)


def style_rule(
    pipe: LatentDiffusionPipeline, icons: RealPictures, real: RealPictures
) -> tuple[IconStyle, dict[str, float]]:
    """Return the rule, and the shares of held-out pictures that it accepts, as they are and copied."""
    first, second = (icons.load([row for row in icons.rows if row.split == split], 64) for split in ("train", "test"))
    sets = {"icons": (first, second)}
    for style in ("fluent-3d", "fluent-flat", "fluent-mono", "noto"):
        rows = [row for row in real.rows if row.style == style and row.group not in UNDRAWN]
        images = real.load(rows[:: max(1, len(rows) // OTHERS)][:OTHERS], 64)
        sets[style] = images[::2], images[1::2]
    fitted = [torch.cat([first, copied(pipe, first)]) for first, _ in sets.values()]
    rule = IconStyle(fitted[0], fitted[1:])
    accepted = {name: float(rule(second).float().mean()) for name, (_, second) in sets.items()}
    copies = {f"{name}, copies": float(rule(copied(pipe, second)).float().mean()) for name, (_, second) in sets.items()}
    return rule, accepted | copies


def named(retrieval: Retrieval, images: Tensor, style: str, network: EfficientNetLite0) -> dict[str, float]:
    """Return the shares of concepts found among the real pictures of a style, where the style has them."""
    rows: Sequence[Picture] = [row for row in retrieval.searched if row.style == style]
    by_name = {str(row.table["name"]): row for row in rows}
    asked = [by_name.get(concept.removeprefix("an ").removeprefix("a ")) for concept in CONCEPTS]
    there = [k for k, row in enumerate(asked) if row is not None]
    hits = retrieval.search(extract(network, images[there]), [row for row in asked if row is not None])  # type: ignore[arg-type]
    return {
        "concepts": len(there),
        "name1": float(hits.name1.float().mean()),
        "name5": float(hits.name5.float().mean()),
    }


def main(before: str, adapter: str, word: str, data: str, reference: str, output: str, weight: str = "1") -> None:
    """Draw before and after, judge both and write the figures and the sheet."""
    network = load_efficientnet_lite0()
    icons, real = read_pictures(data), read_pictures(reference)
    pipe = LatentDiffusionPipeline.from_pretrained(before)
    rule, accepted = style_rule(pipe, icons, real)
    features = Features.cat(features_of(network, pictures, pictures.rows) for pictures in (icons, real))
    few = [[row for row in pictures.rows if row.split == "train"][:COPIES] for pictures in (icons, real)]
    copies = Features.cat(
        features_of(network, p, rows, how="64 px") for p, rows in zip((icons, real), few, strict=True)
    )
    retrieval = Retrieval([*icons.rows, *real.rows], features, copies, [row.style for rows in few for row in rows])

    result: dict[str, object] = {"accepted by the style rule": accepted}
    earlier = None
    for style in ("fluent-3d", "fluent-flat", "fluent-mono"):
        earlier = drawn(pipe, FORMS[style])
        result[f"before, {style}"] = {"style": float(rule(earlier).float().mean())} | named(
            retrieval, earlier, style, network
        )
    pipe.load_textual_inversion(word)
    pipe.load_lora_weights(adapter, "style")
    pipe.set_adapters(["style"], [float(weight)])
    later = drawn(pipe, FORMS["icon-park"])
    grey = later.amax(1, keepdim=True).expand(-1, 3, -1, -1)
    found = named(retrieval, later, "icon-park", network)
    result["after"] = {"style": float(rule(later).float().mean())} | named(retrieval, grey, "fluent-mono", network)
    result["after, among the icons"] = {"concepts": found["concepts"], "icon1": found["name1"], "icon5": found["name5"]}

    assert earlier is not None
    own = {row.text.removeprefix("a blue outline icon of "): row for row in icons.rows}
    rows = [own.get(concept) for concept in CONCEPTS]
    pictures = iter(to_pil(icons.load([row for row in rows if row is not None], 64)))
    columns = [
        Column(concept, None if row is None else next(pictures), pair)
        for concept, row, *pair in zip(CONCEPTS, rows, to_pil(earlier), to_pil(later), strict=True)
    ]
    draw_grid(columns, per_row=17, cell=64).save(f"{output}.png")
    Path(f"{output}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:8])
