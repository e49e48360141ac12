"""Does a model copy? The nearest training picture of each drawing, beside how near training pictures are to each other.

Distance is the root mean square difference of 8-bit pixels at the model's size: blunt, but nobody can argue with it. A
drawing nearer to a training picture than training pictures come to each other is a copy of it, more or less.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from latent_diffusion.data.pictures.nearest import nearest
from latent_diffusion.evaluation.drawn import Drawings
from latent_diffusion.evaluation.gallery import Progress, ignore_progress
from latent_diffusion.evaluation.pictures import Picture, RealPictures

__all__ = ["CopyingScore", "score_copying"]

MOST = 100  # drawings looked up, one a prompt
HALF_RANGE = 127.5  # grey levels from [-1, 1] to 8 bits


@dataclass(frozen=True)
class CopyingScore:
    """Distances to the nearest training picture, in grey levels (0 .. 255, root mean square).

    Attributes:
        pictures: drawings looked up, the first of each prompt.
        searched: training pictures searched.
        nearest: median over the drawings.
        between: median over the training pictures, each searched among the others.
        copies: share of the drawings, 0..1, nearer than nine in ten training pictures are to each other.
        found: for each drawing, the number of its nearest picture in the list searched.
    """

    pictures: int
    searched: int
    nearest: float
    between: float
    copies: float
    found: tuple[int, ...]


def score_copying(
    pictures: RealPictures, drawings: Drawings, trained: Sequence[Picture], progress: Progress = ignore_progress
) -> CopyingScore:
    """Look up the first drawing of each of at most 100 prompts among the pictures the model was `trained` on (2 up)."""
    size = drawings.images.shape[-1]
    real, done = [], 0
    for images in pictures.batches(trained, size):
        real.append(images.flatten(1))
        done += len(images)
        progress("training pictures", done, len(trained))
    searched = torch.cat(real)
    drawn = drawings.images[:: drawings.per_prompt][:MOST].flatten(1)
    distance, found = nearest(drawn, searched)
    between, _ = nearest(searched, searched, others=True)
    distance, between = distance * HALF_RANGE, between * HALF_RANGE
    return CopyingScore(
        pictures=len(drawn),
        searched=len(searched),
        nearest=float(distance.median()),
        between=float(between.median()),
        copies=float((distance < between.quantile(0.1)).float().mean()),
        found=tuple(found.tolist()),
    )
