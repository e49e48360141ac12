"""Repaint holes in held-out pictures with an inpainting U-Net and with the base's 4 channels: docs/training.md.

    python scripts/compare_inpainting.py RUN/model|ADAPTER.safetensors [--pictures 100] [--processes 2] [--json FILE]
        [--grid FILE]

Each picture is one that the bundled model was not trained on, with its own caption and four holes: boxes, strokes, a
border, and its lower half. Both models draw at the base's defaults with the same seed. In a hole:

    error     root of the mean squared difference to the real picture, in grey levels of 255
    distance  1 - cosine of EfficientNet-Lite0's features (head) of the real and of the repainted picture; the pictures
              are equal outside the hole

The spread is that of the mean over pictures: 1.96 standard errors of the paired differences. Meanwhile the means of the
pictures so far are printed: error and distance of the base, then of the inpainting U-Net.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.checkpoint.locate import locate_model
from latent_diffusion.data.pictures.images import to_pil
from latent_diffusion.evaluation.features import extract
from latent_diffusion.evaluation.grid import Column, draw_grid
from latent_diffusion.evaluation.pictures import Picture, RealPictures, read_pictures, select
from latent_diffusion.evaluation.trained_on import read_trained_on
from latent_diffusion.models.efficientnet_lite import EfficientNetLite0, load_efficientnet_lite0
from latent_diffusion.options.tasks import InpaintOptions
from latent_diffusion.training.losses.drawn_masks import DrawnMasks, InpaintingSettings

PICTURES = Path(__file__).parents[1] / "assets" / "emoji-128.zip"
SIDE = 64  # px
SHAPES = ("box", "stroke", "border", "lower half")
MODELS = ("blending", "9 channels")
FIGURES = ("error", "distance")


def masks_of(number: int) -> list[Image.Image]:
    """Return the four holes of a picture, white, 64x64 px."""
    made: list[Image.Image] = []
    for shape in SHAPES:
        if shape == "lower half":
            hole = np.zeros((SIDE, SIDE))
            hole[SIDE // 2 :] = 1
        else:
            settings = InpaintingSettings.model_validate({"shapes": [shape], "whole": 0.0})
            hole = DrawnMasks(settings, seed=12).drawn(number, SIDE, SIDE).numpy()
        made.append(Image.fromarray((hole * 255).astype(np.uint8)))
    return made


def scores(
    network: EfficientNetLite0, real: Image.Image, painted: Sequence[Image.Image], masks: Sequence[Image.Image]
) -> np.ndarray:
    """Return error and distance of each repainted picture, (n, 2)."""
    arrays = np.stack([np.asarray(one, np.float32) for one in (real, *painted)])
    errors = [
        float(np.sqrt(((arrays[k + 1] - arrays[0])[np.asarray(mask) > 127] ** 2).mean()))
        for k, mask in enumerate(masks)
    ]
    heads = F.normalize(extract(network, torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1).head)
    return np.array([errors, (1 - heads[1:] @ heads[0]).tolist()]).T


@cache
def opened(model: str) -> tuple[list[LatentDiffusionPipeline], EfficientNetLite0, RealPictures]:
    """Return both models, what judges, and the pictures."""
    adapter = Path(model).suffix == ".safetensors"
    pipes = [LatentDiffusionPipeline.from_pretrained(name) for name in ("emoji", "emoji" if adapter else model)]
    if adapter:
        pipes[1].load_lora_weights(model)
    return pipes, load_efficientnet_lite0(), read_pictures(PICTURES)


def held_out(count: int) -> list[Picture]:
    """Return about `count` pictures that the bundled model was not trained on, of the styles and groups that it was."""
    where = {name: values for name, values in read_trained_on(locate_model("emoji")).where.items() if name != "split"}
    rows = [row for row in select(read_pictures(PICTURES).rows, where) if row.split in ("val", "test_comp")]
    return rows[:: max(1, len(rows) // count)][:count]


def repainted(model: str, count: int, number: int) -> tuple[np.ndarray, Column]:
    """Return the figures of a picture, (4 holes, 2 models, 2 figures), and one of its holes to look at."""
    pipes, network, pictures = opened(model)
    row = held_out(count)[number]
    real = to_pil(pictures.load([row], SIDE))[0]
    masks, figures, place = masks_of(number), list[np.ndarray](), number % len(SHAPES)
    shown = [Image.composite(Image.new("RGB", real.size, (150, 150, 150)), real, masks[place])]
    for pipe in pipes:
        how: InpaintOptions = {"seed": number, "rewrite": False, "inpainting_adapter": False}
        drawn = [pipe.inpaint(row.text, image=real, mask_image=mask, **how).images[0] for mask in masks]
        painted = [picture for picture in drawn if isinstance(picture, Image.Image)]
        figures.append(scores(network, real, painted, masks))
        shown.append(painted[place])
    return np.stack(figures, axis=1), Column(row.text, real, shown)


def main() -> int:
    """Draw, score and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="folder of the inpainting model, or an inpainting adapter of the bundled model")
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--grid", type=Path, help="file for eight pictures")
    asked = parser.parse_args()
    rows = held_out(asked.pictures)
    found, columns = np.zeros((len(rows), len(SHAPES), len(MODELS), len(FIGURES))), list[Column]()
    work = multiprocessing.get_context("spawn")
    with work.Pool(asked.processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for number, made in enumerate(pool.imap(partial(repainted, asked.model, asked.pictures), range(len(rows)))):
            found[number], column = made
            columns.append(column)
            print(number + 1, found[: number + 1].mean((0, 1)).round(4).tolist(), file=sys.stderr, flush=True)
    print(
        f"| hole, {len(rows)} pictures | error: blending | 9 channels | distance: blending | 9 channels |\n"
        "|---|---|---|---|---|"
    )
    for k, shape in enumerate(SHAPES):
        print(f"| {shape} | {cells(found[:, k])} |")
    print(f"| all | {cells(found.mean(1))} |")
    better = (found[:, :, 1] < found[:, :, 0]).mean((0, 1))
    difference = (found[:, :, 1] - found[:, :, 0]).mean(1)
    spread = 1.96 * difference.std(0, ddof=1) / len(difference) ** 0.5
    for name, mean, wide, share in zip(FIGURES, difference.mean(0), spread, better, strict=True):
        print(f"{name}: 9 channels - blending {mean:+.4g} +- {wide:.2g}, smaller in {share:.0%} of the holes")
    if asked.json:
        asked.json.write_text(
            json.dumps({"pictures": [row.file for row in rows], "figures": found.round(5).tolist()}) + "\n"
        )
    if asked.grid:
        chosen = columns[:: max(1, len(columns) // 12)][:12]
        draw_grid(chosen, per_row=12, cell=72).save(asked.grid, quality=85, method=6)
    return 0


def cells(found: np.ndarray) -> str:
    """Return means over pictures (n, 2 models, 2 figures) as the cells of a row."""
    (error, distance), (error_9, distance_9) = found.mean(0)
    return f"{error:.1f} | {error_9:.1f} | {distance:.3f} | {distance_9:.3f}"


if __name__ == "__main__":
    sys.exit(main())
