"""Masks on which an inpainting U-Net is trained: boxes, strokes of a brush, borders, or the whole picture.

A mask is 1 where the picture is repainted. A quarter of the samples is repainted whole, as in the training of the
published inpainting models (huggingface.co/runwayml/stable-diffusion-inpainting, "Training"). Strokes are wide chains
of lines (Suvorov et al. 2022, arXiv:2109.07161, section 3.3); a border is all but a box, as for drawing a picture on.
"""

import math
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from pydantic import Field
from torch import Tensor

from latent_diffusion.config import Section
from latent_diffusion.data.batches.loader import Batch
from latent_diffusion.data.batches.picture_masks import PictureMasks
from latent_diffusion.randomness import generator

__all__ = ["DrawnMasks", "InpaintingSettings"]

COUNT = 3
"""Largest number of boxes or strokes in a mask."""
SIDES = (0.125, 0.75)
"""Smallest and largest side of a box, in sides of the picture."""
POINTS = (2, 6)
"""Fewest and most lines of a stroke."""
LENGTHS, WIDTHS = (0.1, 0.5), (0.04, 0.2)
"""Length and width of a line, in the shorter side of the picture."""
BANDS = (0.1, 0.4)
"""Width of a border at one edge, in sides of the picture."""


class InpaintingSettings(Section):
    """The `objective.inpainting:` section: a U-Net that reads a mask and the picture around it, and its masks."""

    shapes: list[Literal["box", "stroke", "border"]] = Field(default=["box", "stroke", "border"], min_length=1)
    """Shapes of the masks, one of them a sample."""
    whole: float = Field(default=0.25, ge=0, le=1)
    """Share of the samples that are repainted whole."""
    own: float = Field(default=0.0, ge=0, le=1)
    """Share of the samples that are repainted where the mask file beside the picture is white, if there is one."""


class DrawnMasks:
    """The mask of every sample; all draws have its number as their key."""

    def __init__(self, settings: InpaintingSettings, seed: int, own: PictureMasks | None = None) -> None:
        """Take the shapes, the run's seed and the masks beside the pictures; without those all are drawn."""
        self.settings, self.seed, self.own = settings, seed, own

    def __call__(self, batch: Batch) -> Tensor:
        """Return the masks of B samples, (B, 1, H, W) float32 of 0 and 1, on the CPU."""
        masks: list[Tensor] = []
        for number, row, flipped in zip(batch.sample, batch.row, batch.flipped, strict=True):
            draw = generator(self.seed, "own mask", number)
            mask = None
            if self.own is not None and draw.random() < self.settings.own:
                mask = self.own.of_sample(number, row, flipped=flipped)
            masks.append(self.drawn(number, *batch.images.shape[-2:]) if mask is None else (mask >= 0.5).float())
        return torch.stack(masks)[:, None]

    def drawn(self, number: int, height: int, width: int) -> Tensor:
        """Return the drawn mask of a sample, (H, W) float32 of 0 and 1."""
        draw = generator(self.seed, "mask", number)
        if draw.random() < self.settings.whole:
            return torch.ones(height, width)
        shape = self.settings.shapes[int(draw.integers(len(self.settings.shapes)))]
        mask = Image.new("1", (width, height))
        DRAWN[shape](draw, ImageDraw.Draw(mask), width, height)
        return torch.from_numpy(np.array(mask, np.float32))


def _boxes(draw: np.random.Generator, pen: ImageDraw.ImageDraw, width: int, height: int) -> None:
    for _ in range(int(draw.integers(1, COUNT + 1))):
        rows, columns = (max(1, round(side * draw.uniform(*SIDES))) for side in (height, width))
        top, left = int(draw.integers(height - rows + 1)), int(draw.integers(width - columns + 1))
        pen.rectangle((left, top, left + columns - 1, top + rows - 1), fill=1)


def _strokes(draw: np.random.Generator, pen: ImageDraw.ImageDraw, width: int, height: int) -> None:
    side = min(width, height)
    for _ in range(int(draw.integers(1, COUNT + 1))):
        x, y = draw.uniform(0, width), draw.uniform(0, height)
        thick, angle = max(1.0, side * draw.uniform(*WIDTHS)), draw.uniform(0, 2 * math.pi)
        for _ in range(int(draw.integers(POINTS[0], POINTS[1] + 1))):
            angle += draw.uniform(-math.pi / 2, math.pi / 2)
            length = side * draw.uniform(*LENGTHS)
            end = x + length * math.cos(angle), y + length * math.sin(angle)
            x1, y1 = min(max(end[0], 0), width - 1), min(max(end[1], 0), height - 1)
            pen.line((x, y, x1, y1), fill=1, width=max(1, round(thick)))
            pen.ellipse((x1 - thick / 2, y1 - thick / 2, x1 + thick / 2, y1 + thick / 2), fill=1)
            x, y = x1, y1


def _border(draw: np.random.Generator, pen: ImageDraw.ImageDraw, width: int, height: int) -> None:
    first = int(draw.integers(4))  # at least one edge has a border
    bands = [edge == first or draw.random() < 0.5 for edge in range(4)]
    left, top, right, bottom = (
        max(1, round(side * draw.uniform(*BANDS))) if band else 0
        for band, side in zip(bands, (width, height, width, height), strict=True)
    )
    pen.rectangle((0, 0, width - 1, height - 1), fill=1)
    pen.rectangle((left, top, max(left, width - right - 1), max(top, height - bottom - 1)), fill=0)


DRAWN = {"box": _boxes, "stroke": _strokes, "border": _border}
