"""Does resampling (RePaint) make better seams than more steps at equal evaluations? docs/science/repaint.md.

    python -m experiments.science.repaint [--pictures 100] [--steps 15] [--guidance-scale 1] [--output FOLDER]

Held-out pictures with their own captions, four holes: the right half, a box in the middle, the border, thin strokes.
Each is repainted with N repeats (jump length 1) and, for the same number of evaluations, with N + 1 times the steps;
before that N = 4 is tried on other pictures with several jump lengths. Nothing is feathered: pixels of the hole are
drawn, all others are the original's.

    colour      |p - q| over the pairs of neighbours p in the hole, q outside, less the same of the original
    gradient    |(q' - q) - (p - p')| with p' and q' the next pixels to both sides, less the same of the original

in grey levels of 255; 0 is an edge as smooth as the original's. A finished part is kept in FOLDER/found.json and
skipped.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from experiments.science.figures import PAGES, Found, chart, fill, mean_and_error, save_picture
from experiments.science.pictures import held_out, judge, pictures_of_the_model
from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.checkpoint.files.atomic import replacing
from latent_diffusion.data.pictures.images import to_pil
from latent_diffusion.diffusion.known import kept
from latent_diffusion.diffusion.resample import Resampled
from latent_diffusion.evaluation.features import extract
from latent_diffusion.evaluation.grid import Column, draw_grid
from latent_diffusion.evaluation.kid import kid
from latent_diffusion.evaluation.pictures import Picture
from latent_diffusion.inpainting.masks import max_pool
from latent_diffusion.options.call import Options
from latent_diffusion.pipeline.engine.output import decode
from latent_diffusion.randomness import generator

SIDE, CELL = 64, 4  # px of a picture and of a cell of its latents
MASKS = ("half", "centre box", "border", "thin strokes")
REPEATS = (0, 1, 2, 4, 9)
JUMPS = (1, 2, 3, 5, 15)
BATCH = 16


class Arm(NamedTuple):
    """A way to spend evaluations."""

    repeats: int
    steps: int
    jump: int = 1


def mask_of(name: str, number: int) -> np.ndarray:
    """Return a hole, (64, 64) bool; the strokes differ from picture to picture."""
    hole = np.zeros((SIDE, SIDE), bool)
    if name == "half":
        hole[:, SIDE // 2 :] = True
    elif name == "centre box":
        hole[16:48, 16:48] = True
    elif name == "border":
        hole[:] = True
        hole[12:52, 12:52] = False
    else:
        corners = generator(12, "thin strokes", number).integers(8, SIDE - 8, size=(4, 2))
        drawn = Image.new("1", (SIDE, SIDE))
        ImageDraw.Draw(drawn).line([(int(x), int(y)) for x, y in corners], fill=1, width=3)
        hole = np.array(drawn)
    return hole


def seams(images: np.ndarray, hole: np.ndarray) -> tuple[float, float]:
    """Return mean jumps of colour and of gradient over the edge of `hole` (H, W) in one image (H, W, 3)."""
    colour, gradient = [], []
    for turn in range(4):  # the hole's neighbour below; the others by turning
        image, inside = np.rot90(images, turn).astype(np.float64), np.rot90(hole, turn)
        edge = np.zeros_like(inside)
        edge[1:-2] = inside[1:-2] & ~inside[2:-1]
        row, column = np.nonzero(edge)
        before, p, q, after = (image[row + k, column] for k in (-1, 0, 1, 2))
        colour.append(np.abs(p - q).mean(1))
        gradient.append(np.abs((after - q) - (p - before)).mean(1))
    return float(np.concatenate(colour).mean()), float(np.concatenate(gradient).mean())


def paint(
    pipe: LatentDiffusionPipeline, rows: Sequence[Picture], real: Tensor, name: str, arm: Arm | None, **options: Any
) -> Tensor:
    """Return the pictures (B, 3, 64, 64) in [-1, 1] with the hole `name` of each repainted.

    With no arm the hole is filled with what the autoencoder makes of the original: the least seam of any method.
    """
    holes = np.stack([mask_of(name, number) for number in range(len(rows))])
    cells = np.stack([max_pool(hole.astype(np.uint8), SIDE // CELL, SIDE // CELL) for hole in holes])
    painted = []
    for start in range(0, len(rows), BATCH):
        part = slice(start, start + BATCH)
        known = pipe.components.autoencoder.to_latents(real[part])
        if arm is None:
            painted.append(decode(pipe.components.autoencoder, known))
            continue
        asked = Options(seed=list(range(len(rows)))[part], num_inference_steps=arm.steps, **options)
        job = pipe.engine.start([row.text for row in rows[part]], pipe.engine.settings(asked), asked)
        job = replace(job, keep=kept(known, torch.from_numpy(cells[part]).float()[:, None]))
        sampler = Resampled(job.settings.build_sampler(), arm.repeats, arm.jump)
        drawn = job.draw(job.initial_noise(), None, sampler=sampler)
        painted.append(decode(job.decoder, drawn.latents))
    return torch.where(torch.from_numpy(holes)[:, None], torch.cat(painted), real)


def score(pixels: Tensor, real: Tensor, rows: Sequence[Picture], name: str, *, judged: bool) -> dict[str, list[float]]:
    """Return the figures of each picture and, if they are `judged`, KID of all against the originals of the others."""
    arrays, originals = ((each.permute(0, 2, 3, 1).numpy() + 1) * 127.5 for each in (pixels, real))
    edges = [
        np.subtract(seams(one, mask_of(name, k)), seams(original, mask_of(name, k)))
        for k, (one, original) in enumerate(zip(arrays, originals, strict=True))
    ]
    seen = {
        "colour": [float(edge[0]) for edge in edges],
        "gradient": [float(edge[1]) for edge in edges],
    }
    if not judged:
        return seen
    network, gallery = the_judge()
    assert gallery.retrieval is not None
    features, true = extract(network, pixels), extract(network, real)
    numbers = torch.arange(len(rows))
    unit, true_unit = (torch.nn.functional.normalize(each.head) for each in (features, true))
    return seen | {
        "name1": gallery.retrieval.search(features, rows).name1.float().tolist(),
        "distance": (1 - (unit * true_unit).sum(1)).tolist(),
        "kid": [kid(features.head, true.head, numbers, numbers)],
    }


@cache
def the_judge():
    return judge(pictures_of_the_model())


def arms(steps: int, repeats: Sequence[int] = REPEATS) -> dict[str, Arm | None]:
    """Return every way to fill a hole by its name."""
    resampled: dict[str, Arm | None] = {f"{n} repeats": Arm(n, steps) for n in repeats}
    longer = {f"{n + 1} x {steps} steps": Arm(0, (n + 1) * steps) for n in repeats if n}
    return {"autoencoder": None} | resampled | longer


def measured(found: Found, name: str) -> list[int]:
    """Return the numbers of repeats with which a hole was painted."""
    return [n for n in REPEATS if f"{name}, {n} repeats" in found]


def table(found: Found, steps: int) -> list[str]:
    """Return the rows of the page: each hole, N beside the plain run of the same evaluations."""
    judged = all("kid" in value for key, value in found.values.items() if key.startswith(MASKS))
    lines = ["| hole | evaluations | colour: resampled | more steps | gradient: resampled | more steps |"]
    lines[0] += " Name@1 | | KID | |" if judged else ""
    lines.append("|---" * (lines[0].count("|") - 1) + "|")
    for name in (name for name in MASKS if f"{name}, autoencoder" in found):
        for label, one, other in (
            ("autoencoder", found[f"{name}, autoencoder"], None),
            *(
                (f"{n + 1} x {steps}", found[f"{name}, {n} repeats"], found[more_steps(name, n, steps)] if n else None)
                for n in measured(found, name)
            ),
        ):
            pair = (one, other)
            cells = [
                "" if each is None else mean_and_error(each[kind], 2)
                for kind in ("colour", "gradient")
                for each in pair
            ]
            if judged:
                cells += ["" if each is None else f"{np.mean(each['name1']):.2f}" for each in pair]
                cells += ["" if each is None else f"{each['kid'][0]:.0f}" for each in pair]
            lines.append(f"| {name} | {label} | " + " | ".join(cells) + " |")
    return lines


def more_steps(name: str, n: int, steps: int) -> str:
    """Return the name of the plain run of a hole that costs as many evaluations as N repeats."""
    return f"{name}, {n + 1} x {steps} steps"


def differences(found: Found, steps: int) -> list[str]:
    """Return the paired differences of N repeats from N + 1 times the steps, and of both from the plain run."""
    lines = [
        "| hole | N | colour: repeats - more steps | repeats - plain | more steps - plain |",
        "|---|---|---|---|---|",
    ]
    for name in (name for name in MASKS if f"{name}, 0 repeats" in found):
        plain = np.array(found[f"{name}, 0 repeats"]["colour"])
        for n in measured(found, name)[1:]:
            one, other = (
                np.array(found[f"{name}, {arm}"]["colour"]) for arm in (f"{n} repeats", f"{n + 1} x {steps} steps")
            )
            cells = [mean_and_error(each, 2) for each in (one - other, one - plain, other - plain)]
            lines.append(f"| {name} | {n} | " + " | ".join(cells) + " |")
    return lines


def main() -> int:
    """Measure what is not measured yet, and write the page's tables and figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--trial-pictures", type=int, default=16, help="pictures on which jump lengths are tried")
    parser.add_argument("--masks", nargs="+", choices=MASKS, default=list(MASKS))
    parser.add_argument("--repeats", nargs="+", type=int, choices=REPEATS, default=list(REPEATS))
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--output", type=Path, default=Path("runs/science/repaint"))
    parser.add_argument("--only-seams", action="store_true", help="leave Name@1 and KID out")
    parser.add_argument("--only-draw", action="store_true", help="leave judging to a later run")
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    found = Found(asked.output / "found.json")
    pictures = pictures_of_the_model()
    rows, others = held_out(pictures, asked.pictures), held_out(pictures, asked.trial_pictures, first=3)
    others = [row for row in others if row not in rows] or others
    trials = {f"trial, {name}, jump {j}": (others, name, Arm(4, asked.steps, j)) for name in MASKS[:2] for j in JUMPS}
    cases = {
        f"{name}, {arm}": (rows, name, how)
        for name in asked.masks
        for arm, how in arms(asked.steps, asked.repeats).items()
    }
    real = {len(chosen): pictures.load(chosen, SIDE) for chosen in (others, rows)}
    pipe = LatentDiffusionPipeline.from_pretrained("emoji")
    for label, (chosen, name, arm) in (trials | cases).items():
        file, began = asked.output / f"{label}.npy", time.process_time()
        if not file.exists():
            pixels = paint(pipe, chosen, real[len(chosen)], name, arm, guidance_scale=asked.guidance_scale)
            with replacing(file) as new, new.open("wb") as opened:
                np.save(opened, ((pixels + 1) * 127.5).round().byte().numpy())
            found["minutes"] = found.values.get("minutes", 0.0) + (time.process_time() - began) / 60
            print(label, f"{found['minutes']:.1f} minutes", file=sys.stderr, flush=True)
    if asked.only_draw:
        return 0
    for label, (chosen, name, _) in (trials | cases).items():
        if label not in found:
            pixels = torch.from_numpy(np.load(asked.output / f"{label}.npy")).float() / 127.5 - 1
            found[label] = score(pixels, real[len(chosen)], chosen, name, judged=not asked.only_seams)
            print(label, {kind: round(float(np.mean(values)), 3) for kind, values in found[label].items()})
    write(found, rows, real[len(rows)], asked.steps, asked.output)
    return 0


def write(found: Found, rows: Sequence[Picture], real: Tensor, steps: int, output: Path) -> None:
    """Put tables, chart and pictures on the page."""
    page = PAGES / "repaint.md"
    trial = ["| jump length | half: colour | gradient | box: colour | gradient |", "|---|---|---|---|---|"]
    for jump in JUMPS:
        scores = [found[f"trial, {name}, jump {jump}"] for name in MASKS[:2]]
        cells = [mean_and_error(each[kind], 2) for each in scores for kind in ("colour", "gradient")]
        trial.append(f"| {jump} | " + " | ".join(cells) + " |")
    fill(page, "jump lengths", trial)
    fill(page, "repaint", table(found, steps))
    fill(page, "differences", differences(found, steps))
    panels = {}
    shown_masks = [name for name in MASKS if f"{name}, 4 repeats" in found]
    for name in shown_masks:
        every = measured(found, name)
        resampled = [(n + 1, float(np.mean(found[f"{name}, {n} repeats"]["colour"]))) for n in every]
        longer = [(n + 1, float(np.mean(found[f"{name}, {n + 1} x {steps} steps"]["colour"]))) for n in every[1:]]
        panels[name] = {"N repeats": resampled, "N + 1 times the steps": [resampled[0], *longer]}
    (PAGES / "repaint.svg").write_text(chart(panels, f"evaluations / {steps}", even=True))
    columns = []
    for k in range(0, len(rows), max(1, len(rows) // 12))[:12]:
        name = shown_masks[len(columns) % len(shown_masks)]
        hole = torch.from_numpy(mask_of(name, k))
        shown = [to_pil(torch.where(hole, torch.tensor(0.2), real[k])[None])[0]]
        for arm in ("0 repeats", "4 repeats", f"5 x {steps} steps"):
            pixels = np.load(output / f"{name}, {arm}.npy")[k]
            shown.append(to_pil(torch.from_numpy(pixels)[None].float() / 127.5 - 1)[0])
        columns.append(Column(rows[k].text, to_pil(real[k : k + 1])[0], shown))
    save_picture(draw_grid(columns, per_row=12, cell=72), PAGES / "repaint.webp")


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main())
