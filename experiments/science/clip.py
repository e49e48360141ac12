"""Does a CLIP of noisy latents bring the caption into a picture? docs/science/clip.md.

    python -m experiments.science.clip [--pictures 48] [--model FOLDER] [--output FOLDER]

Two parts. The share of held-out pictures whose own caption scores highest among 64, at eleven noise levels. Prompts of
concepts in three styles, drawn by the bundled model: the empty prompt guided by CLIP alone at growing scales, and the
prompt under classifier-free guidance with and without CLIP. Two judges, neither of which is the CLIP that guides: which
style EfficientNet-Lite0 sees, and the share of pictures whose own prompt scores highest among all that were drawn, by
the CLIP of clean pictures of the bundled model's first version.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.judge_prompts import STYLES, Asked, questions
from experiments.science.classifier import TIMES
from experiments.science.figures import PAGES, Found, fill, save_picture
from experiments.science.pictures import held_out, judge, pictures_of_the_model
from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.checkpoint.folder.clip_folder import load_clip
from latent_diffusion.checkpoint.folder.latent_clip_folder import load_latent_clip
from latent_diffusion.data.pictures.images import to_pil
from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.evaluation.features import extract
from latent_diffusion.evaluation.grid import Column, draw_grid
from latent_diffusion.evaluation.pictures import Picture, RealPictures
from latent_diffusion.randomness import normal

PAGE = PAGES / "clip.md"
SHOWN = 12  # prompts on the sheet
JUDGE = "assets/emoji-first"  # its CLIP of clean pictures
AMONG, BATCH = 64, 24
ALONE = {f"alone, scale {scale:g}": (0.0, scale) for scale in (0.0, 1.0, 4.0, 16.0)}
BESIDE = {f"guidance 1.5, scale {scale:g}": (1.5, scale) for scale in (0.0, 4.0)}
CASES = {**ALONE, **BESIDE}
"""Name of a case: scale of classifier-free guidance (0 is the empty prompt alone) and of CLIP guidance."""


def accuracy(
    found: Found, folder: str, pipe: LatentDiffusionPipeline, pictures: RealPictures, rows: Sequence[Picture]
) -> None:
    """Measure the share of right captions among those of `rows`, at each noise level, three draws of noise each."""
    network, parts = load_latent_clip(folder).network, pipe.components
    x0 = torch.cat([parts.autoencoder.to_latents(pictures.load(rows[k : k + 16], 64)) for k in range(0, len(rows), 16)])
    text = network.text_features(parts.text_encoder([row.text for row in rows]).context)
    for t in TIMES:
        level, shares = parts.schedule.level(t), list[float]()
        for seed in range(3):
            noise = normal(seed, f"matched {t}", range(len(rows)), x0.shape[1:])
            x = add_noise(x0.float(), noise, level.alpha, level.sigma)
            scores = network.image_features(x, torch.full((len(x),), float(t))) @ text.T
            shares.append(float((scores.argmax(dim=1) == torch.arange(len(rows))).float().mean()))
        found[f"accuracy, {t}"] = shares
    found["held out"] = len(rows)


def drawn(pipe: LatentDiffusionPipeline, asked: Sequence[Asked], folder: str, output: Path) -> None:
    """Draw what is not drawn yet, as .npy files of bytes; prompt k has seed k in every case."""
    prompts = [one.picture.text for one in asked]
    for case, (weight, scale) in CASES.items():
        file, parts = output / f"{case}.npy", list[Tensor]()
        if file.exists():
            continue
        for start in range(0, len(prompts), BATCH):
            out = pipe(
                prompts[start : start + BATCH], seed=list(range(len(prompts)))[start : start + BATCH], rewrite=False,
                guidance=f"noised_clip:model={folder},scale={scale:g}", guidance_scale=weight, output_type="pt",
            )  # fmt: skip
            assert isinstance(out.images, Tensor), 'output_type "pt" gives a tensor'
            parts.append(out.images)
        np.save(file, (torch.cat(parts) * 255).round().byte().numpy())


def judged(found: Found, asked: Sequence[Asked], pictures: RealPictures, output: Path) -> None:
    """Judge the drawn pictures: right style, and right prompt among all."""
    if all(case in found for case in CASES):
        return
    (network, gallery), clip = judge(pictures), load_clip(JUDGE)
    assert gallery.retrieval is not None
    by_style = {row.style: row for row in gallery.pictures.rows}
    wanted, texts = [by_style[one.picture.style] for one in asked], clip.text_features([q.picture.text for q in asked])
    for case in CASES:
        images = torch.from_numpy(np.load(output / f"{case}.npy")).float() / 127.5 - 1
        right = (clip.image_features(images) @ texts.T).argmax(dim=1) == torch.arange(len(asked))
        style = gallery.retrieval.search(extract(network, images), wanted).style
        found[case] = {"style": style.float().tolist(), "prompt": right.float().tolist()}


def write(found: Found, asked: Sequence[Asked], output: Path) -> None:
    """Put tables and pictures on the page."""
    shares = [f"{np.mean(found[f'accuracy, {t}']):.2f}" for t in TIMES]
    lines = ["| time | " + " | ".join(map(str, TIMES)) + " |", "|---" * (len(TIMES) + 1) + "|"]
    fill(PAGE, "accuracy", [*lines, f"| right of {found['held out']} | " + " | ".join(shares) + " |"])
    lines = ["| classifier-free guidance | CLIP scale | right style | right prompt |", "|---|---|---|---|"]
    for case, (weight, scale) in CASES.items():
        style, prompt = (np.mean(found[case][kind]) for kind in ("style", "prompt"))
        text = f"{weight:g}" if weight else "empty prompt"
        lines.append(f"| {text} | {scale:g} | {style:.2f} | {prompt:.2f} |")
    fill(PAGE, "drawn", lines)
    sheets = [np.load(output / f"{case}.npy") for case in CASES]
    columns = [
        Column(
            asked[k].picture.text, None, [to_pil(torch.from_numpy(s[k : k + 1]).float() / 127.5 - 1)[0] for s in sheets]
        )
        for k in range(0, len(asked), max(1, len(asked) // SHOWN))[:SHOWN]
    ]
    save_picture(draw_grid(columns, per_row=SHOWN, cell=64), PAGES / "clip.webp")


def main() -> int:
    """Measure what is not measured yet, and write the page's tables and pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=48, help="prompts of each case")
    parser.add_argument("--judge-every", type=int, default=1, help="fit the judge on every so many-th real picture")
    parser.add_argument("--group", nargs="*", help="groups of the held-out pictures and the prompts; all without it")
    parser.add_argument("--model", default="runs/science/latent_clip/model")
    parser.add_argument("--output", type=Path, default=Path("runs/science/clip-figures"))
    given = parser.parse_args()
    found, began = Found(given.output / "found.json"), time.process_time()
    given.output.mkdir(parents=True, exist_ok=True)
    every, pipe = pictures_of_the_model(), LatentDiffusionPipeline.from_pretrained("emoji", dtype="float32")
    in_group = [row for row in every.rows if not given.group or row.group in given.group]
    some = replace(every, rows=tuple(in_group))
    asked = [q for q in questions(every, "emoji", "train", 10_000) if q.picture in set(some.rows)]
    asked = [q for style in STYLES for q in [q for q in asked if q.picture.style == style][: given.pictures // 3]]
    with torch.no_grad():
        if f"accuracy, {TIMES[-1]}" not in found:
            accuracy(found, given.model, pipe, some, held_out(some, AMONG))
        drawn(pipe, asked, given.model, given.output)
        judged(found, asked, replace(every, rows=every.rows[:: given.judge_every]), given.output)
    found["minutes"] = found.values.get("minutes", 0.0) + (time.process_time() - began) / 60
    write(found, asked, given.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
