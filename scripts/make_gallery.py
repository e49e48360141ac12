"""Remake the pictures of the README with the bundled model: a sheet of prompts, and an inpainting sheet.

    python scripts/make_gallery.py [MODEL]

Writes assets/gallery/prompts.png and assets/gallery/inpainting.png. On the inpainting sheet each column is a held-out
picture, the same with its hole in grey, and what the model painted into the hole for the picture's caption.
"""

import sys
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.data.images import to_pil
from latent_diffusion.evaluation.grid import Column, draw_grid
from latent_diffusion.evaluation.pictures import read_pictures

ROOT = Path(__file__).parent.parent
GALLERY = ROOT / "assets" / "gallery"
CELL = 96
THINGS = (
    *("red apple", "cat face", "banana", "pizza", "rabbit", "tropical fish", "hamburger", "tulip"),
    *("penguin", "strawberry", "palm tree", "butterfly"),
)
STYLES = ("a 3d render of a", "a flat vector illustration of a")


def prompts_sheet(pipe: LatentDiffusionPipeline) -> Image.Image:
    sheet = Image.new("RGB", (CELL * len(THINGS), CELL * len(STYLES)), "white")
    for row, style in enumerate(STYLES):
        pictures = pipe([f"{style} {thing}" for thing in THINGS], seed=1).images
        for column, picture in enumerate(pictures):
            sheet.paste(picture.resize((CELL, CELL), Image.Resampling.BICUBIC), (column * CELL, row * CELL))
    return sheet


def inpainting_sheet(pipe: LatentDiffusionPipeline) -> tuple[Image.Image, int]:
    """Return the sheet and how many pixels outside the masks changed."""
    pictures = read_pictures(ROOT / "assets" / "emoji-128.zip")
    styles, groups = ("fluent-3d", "fluent-flat"), ("animals-nature", "food-drink")
    held_out = [r for r in pictures.rows if r.split == "test_comp" and r.style in styles and r.group in groups][:12]
    columns, changed = [], 0
    for number, (row, image) in enumerate(zip(held_out, to_pil(pictures.load(held_out, 64)), strict=True)):
        mask = Image.new("L", image.size, 0)
        boxes = ((0, 0, 63, 31), (0, 32, 63, 63), (32, 0, 63, 63), (16, 16, 47, 47))  # px: halves, and the middle
        ImageDraw.Draw(mask).rectangle(boxes[number % len(boxes)], fill=255)
        painted = pipe.inpaint(row.text, image=image, mask_image=mask, seed=number).images[0]
        outside = ImageChops.multiply(ImageChops.difference(image, painted).convert("L"), ImageChops.invert(mask))
        changed += sum(outside.histogram()[1:])
        hole = Image.composite(Image.new("RGB", image.size, (150, 150, 150)), image, mask)
        columns.append(Column(row.text, image, [hole, painted]))
    return draw_grid(columns, per_row=12, cell=CELL), changed


def main(model: str = "emoji") -> None:
    GALLERY.mkdir(exist_ok=True, parents=True)
    pipe = LatentDiffusionPipeline.from_pretrained(model)
    prompts_sheet(pipe).save(GALLERY / "prompts.png")
    sheet, changed = inpainting_sheet(pipe)
    sheet.save(GALLERY / "inpainting.png")
    print(f"{GALLERY}: {changed} pixels changed outside the masks")


if __name__ == "__main__":
    main(*sys.argv[1:2])
