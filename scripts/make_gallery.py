"""Remake the sheets of docs/gallery.md with the bundled model.

    python scripts/make_gallery.py [MODEL]

Writes into assets/gallery/: prompts, typed, compositions, seeds, guidance, steps, inpainting and process (.webp).
Every picture on them is one that `latent-diffusion generate` draws with the prompt, seed and options written on the
sheet.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageChops, ImageDraw, ImageFont

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.checkpoint.locate import locate_model
from latent_diffusion.data.pictures.images import to_pil
from latent_diffusion.diffusion.level import Step
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.evaluation.grid import Column, draw_grid
from latent_diffusion.evaluation.pictures import Picture, read_pictures, select
from latent_diffusion.evaluation.trained_on import read_trained_on
from latent_diffusion.options.call import Options
from latent_diffusion.pipeline.engine.output import Output

ROOT = Path(__file__).parent.parent
GALLERY = ROOT / "assets" / "gallery"
CELL, GAP = 88, 4  # px
SEED = 1
STYLES = ("a 3d render of a", "a flat vector illustration of a", "a black and white icon of a", "a")
THINGS = (
    *("red apple", "cat face", "pizza", "rocket", "guitar", "penguin"),
    *("grinning face", "castle", "soccer ball", "key", "tulip", "umbrella"),
)
SWEPT = ("a 3d render of a red apple", "a flat vector illustration of a penguin", "a black and white icon of a rocket")
TYPED = ROOT / "experiments" / "typed_prompts.txt"
Rows = Sequence[tuple[str, Sequence[Image.Image]]]


def pictures_of(out: Output) -> list[Image.Image]:
    """Return the pictures of a call that was asked for PIL."""
    return [picture for picture in out.images if isinstance(picture, Image.Image)]


def sheet(columns: Sequence[str], rows: Rows) -> Image.Image:
    """Return pictures in a table with a label above each column and before each row."""
    font = ImageFont.load_default(11)
    left = max((int(font.getlength(label)) for label, _ in rows), default=0) + 8
    across, down = left + len(columns) * (CELL + GAP), 18 + len(rows) * (CELL + GAP)
    result = Image.new("RGB", (across, down), "white")
    draw = ImageDraw.Draw(result)
    for number, label in enumerate(columns):
        draw.text((left + number * (CELL + GAP) + CELL / 2, 9), label, "black", font, anchor="mm")
    for line, (label, pictures) in enumerate(rows):
        y = 18 + line * (CELL + GAP)
        draw.text((left - 6, y + CELL / 2), label, "black", font, anchor="rm")
        for number, picture in enumerate(pictures):
            small = picture.resize((CELL, CELL), Image.Resampling.BICUBIC)
            result.paste(small, (left + number * (CELL + GAP), y))
    return result


def prompts(pipe: LatentDiffusionPipeline) -> Image.Image:
    as_written: Options = {"seed": [SEED] * len(THINGS), "rewrite": False}  # the last row names no style
    rows = [
        (f"{style} …", pictures_of(pipe([f"{style} {thing}" for thing in THINGS], **as_written))) for style in STYLES
    ]
    return sheet(THINGS, rows)


def typed(pipe: LatentDiffusionPipeline) -> Image.Image:
    """Draw lists of ten prompts as a person types them, each list with the seeds of `--prompts-file FILE --seed 1`."""
    lines = [line for line in TYPED.read_text().splitlines() if line and not line.startswith("#")]
    drawn = pictures_of(pipe(lines, seed=[SEED + k % 10 for k in range(len(lines))], rewrite=False))
    columns = [Column(line, picture, []) for line, picture in zip(lines, drawn, strict=True)]
    return draw_grid(columns, per_row=10, cell=CELL)


def seeds(pipe: LatentDiffusionPipeline) -> Image.Image:
    rows = [(prompt, pictures_of(pipe(prompt, num_images_per_prompt=12, seed=0))) for prompt in SWEPT]
    return sheet([f"seed {k}" for k in range(12)], rows)


def guidance(pipe: LatentDiffusionPipeline) -> Image.Image:
    scales = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0)
    rows = [(p, [pictures_of(pipe(p, guidance_scale=s, seed=SEED))[0] for s in scales]) for p in SWEPT]
    return sheet([f"guidance {scale:g}" for scale in scales], rows)


def steps(pipe: LatentDiffusionPipeline) -> Image.Image:
    counts = (5, 8, 12, 16, 20, 25, 35, 50)
    rows = [(p, [pictures_of(pipe(p, num_inference_steps=n, seed=SEED))[0] for n in counts]) for p in SWEPT]
    return sheet([f"{count} steps" for count in counts], rows)


@torch.no_grad()
def process(pipe: LatentDiffusionPipeline, row: Picture, picture: torch.Tensor) -> Image.Image:
    """Noise a picture, and take noise back to one: both decoded, and the estimate of x0 on the way back."""
    parts, levels = pipe.components, []
    x0 = parts.autoencoder.to_latents(picture)
    noise = NoiseSource([SEED]).draw(x0.shape[1:])
    forward = []
    for t in (0, 100, 200, 300, 400, 500, 600, 700, 800, 999):
        level = parts.schedule.level(t)
        levels.append(f"t = {t}")
        forward.append(parts.autoencoder.to_images(level.alpha * x0 + level.sigma * noise)[0])
    trace: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(step: Step) -> None:
        trace.append((step.x, step.x0))

    pipe(row.text, seed=SEED, num_inference_steps=10, sampler="ddim", on_step=keep)
    back, estimates = (torch.cat([parts.autoencoder.to_images(pair[k]) for pair in trace]) for k in (0, 1))
    rows = [
        (f"forward: {row.table['name']}", to_pil(torch.stack(forward))),
        ("reverse: x, step 1 to 10", to_pil(back)),
        ("reverse: estimate of x0", to_pil(estimates)),
    ]
    return sheet(levels, rows)


def compositions(
    pipe: LatentDiffusionPipeline, held_out: Sequence[Picture], real: Sequence[Image.Image]
) -> Image.Image:
    drawn = pictures_of(pipe([row.text for row in held_out], num_images_per_prompt=3, seed=0))
    columns = [Column(row.text, real[k], drawn[3 * k : 3 * k + 3]) for k, row in enumerate(held_out)]
    return draw_grid(columns, per_row=12, cell=CELL)


def inpainting(
    pipe: LatentDiffusionPipeline, held_out: Sequence[Picture], real: Sequence[Image.Image]
) -> tuple[Image.Image, int]:
    """Return the sheet and how many pixels outside the masks changed."""
    columns, changed = [], 0
    for number, (row, image) in enumerate(zip(held_out, real, strict=True)):
        mask = Image.new("L", image.size, 0)
        boxes = ((0, 0, 63, 31), (0, 32, 63, 63), (32, 0, 63, 63), (16, 16, 47, 47))  # px: halves, and the middle
        ImageDraw.Draw(mask).rectangle(boxes[number % len(boxes)], fill=255)
        painted = pictures_of(pipe.inpaint(row.text, image=image, mask_image=mask, seed=number))[0]
        outside = ImageChops.multiply(ImageChops.difference(image, painted).convert("L"), ImageChops.invert(mask))
        changed += sum(outside.histogram()[1:])
        hole = Image.composite(Image.new("RGB", image.size, (150, 150, 150)), image, mask)
        columns.append(Column(row.text, image, [hole, painted]))
    return draw_grid(columns, per_row=12, cell=CELL), changed


def save(picture: Image.Image, name: str) -> None:
    """Write a sheet so that it is small; nobody sees the difference."""
    picture.save(GALLERY / f"{name}.webp", quality=85, method=6)


def main(model: str = "emoji") -> None:
    GALLERY.mkdir(exist_ok=True, parents=True)
    pipe = LatentDiffusionPipeline.from_pretrained(model)
    pictures = read_pictures(ROOT / "assets" / "emoji-128.zip")
    known = select(pictures.rows, read_trained_on(locate_model(model)).where)
    held_out = [row for row in known if row.split == "test_comp"]
    held_out = held_out[:: max(1, len(held_out) // 24)][:24]
    real = to_pil(pictures.load(held_out, 64))
    for name, made in (
        ("prompts", prompts),
        ("typed", typed),
        ("seeds", seeds),
        ("guidance", guidance),
        ("steps", steps),
    ):
        save(made(pipe), name)
    rocket = next(row for row in known if row.text == "a 3d render of a rocket")
    save(process(pipe, rocket, pictures.load([rocket], 64)), "process")
    save(compositions(pipe, held_out, real), "compositions")
    painted, changed = inpainting(pipe, held_out[:12], real[:12])
    save(painted, "inpainting")
    print(f"{GALLERY}: {changed} pixels changed outside the masks")


if __name__ == "__main__":
    main(*sys.argv[1:2])
