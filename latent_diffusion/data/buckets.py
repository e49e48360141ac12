"""Aspect-ratio buckets: the sizes a run trains on, and which of them each picture goes to.

The sizes around a side s are those of kohya's sd-scripts: every width that is a multiple of `step`, with the largest
height, a multiple too, for which the area is at most s * s. A picture goes to the size nearest to its own proportions,
measured by the logarithm of width / height, so that tall and wide pictures are treated alike.
Reference: NovelAI 2022, "Aspect ratio bucketing".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latent_diffusion.data.pictures.fitting import Size
from latent_diffusion.data.settings import BucketConfig
from latent_diffusion.errors import ConfigError

__all__ = ["BucketRow", "Buckets", "bucket_sizes", "crop_loss", "plan_lines"]


def bucket_sizes(side: int, step: int, least: int, most: int) -> list[Size]:
    """Return the sizes (width, height) around a square of `side` px, sorted; all sides are multiples of `step`."""
    area = side * side
    least = -(-min(least, side) // step) * step
    sizes: set[Size] = set()
    for width in range(least, most + 1, step):
        height = min(most, area // width // step * step)
        if height >= least:
            sizes |= {(width, height), (height, width)}
    square = side // step * step
    return sorted(sizes | ({(square, square)} if square else set()))


class Buckets:
    """The sizes of a run."""

    def __init__(self, config: BucketConfig, sides: Sequence[int]) -> None:
        """Take the settings and the sides that pictures are trained at.

        Raises:
            ConfigError: a side is smaller than a step.
        """
        self.config, self.sides = config, sorted(set(sides))
        for side in self.sides:
            if side < config.step:
                raise ConfigError(f"data.buckets: a size of {side} px is smaller than a step of {config.step} px")
            if config.max_side is not None and config.max_side < side:
                raise ConfigError(f"data.buckets: max_side of {config.max_side} px is smaller than a size of {side} px")
        self.around = {
            side: bucket_sizes(side, config.step, config.min_side, config.max_side or 2 * side) for side in self.sides
        }

    def of(self, sizes: np.ndarray) -> list[Size]:
        """Return the bucket (width, height) of each picture; `sizes` (N, 2) are widths and heights in px."""
        sides = np.array(self.sides)
        areas = sizes.astype(np.float64).prod(axis=1)
        place = np.searchsorted(sides * sides, areas, side="right") - 1  # the largest that is filled
        chosen: list[Size] = [(0, 0)] * len(sizes)
        for k, side in enumerate(self.sides):
            rows = np.flatnonzero(np.maximum(place, 0) == k)
            if len(rows):
                self._nearest(sizes[rows], rows, self.around[side], chosen)
        if not self.config.enlarge:
            for row in np.flatnonzero((sizes < np.array(chosen)).any(axis=1)):
                chosen[row] = self._own_size(sizes[row], chosen[row])
        return chosen

    def _nearest(self, sizes: np.ndarray, rows: np.ndarray, known: list[Size], chosen: list[Size]) -> None:
        ratios = np.log([width / height for width, height in known])
        own = np.log(sizes[:, 0] / sizes[:, 1])
        order = np.argsort(ratios, kind="stable")
        middles = (ratios[order][1:] + ratios[order][:-1]) / 2
        for row, place in zip(rows, np.searchsorted(middles, own)):
            chosen[row] = known[order[place]]

    def _own_size(self, size: np.ndarray, bucket: Size) -> Size:
        """Return the largest size of whole steps inside a picture that is smaller than its bucket."""
        step = self.config.step
        width, height = (max(step, min(int(own), most) // step * step) for own, most in zip(size, bucket))
        return width, height


@dataclass(frozen=True)
class BucketRow:
    """A line of the plan.

    Attributes:
        size: width and height in px.
        pictures: samples of a pass.
        batches: batches of a pass, the smaller last one included.
        last: pictures of the last batch.
        lost: mean share of a picture's area that is cut off, 0..1.
        enlarged: pictures that are scaled up.
    """

    size: Size
    pictures: int
    batches: int
    last: int
    lost: float
    enlarged: int


def crop_loss(size: Size, bucket: Size) -> float:
    """Return the share of a picture's area that is cut off where it fills its bucket, 0..1."""
    own, target = size[0] / size[1], bucket[0] / bucket[1]
    return 1 - min(own, target) / max(own, target)


def plan_lines(rows: Sequence[BucketRow]) -> list[str]:
    """Return the plan as a table of text."""
    head = f"{'size':>11} {'pictures':>9} {'batches':>8} {'last':>5} {'cut off':>8} {'enlarged':>9}"
    lines = [
        f"{f'{row.size[0]}x{row.size[1]}':>11} {row.pictures:>9} {row.batches:>8} {row.last:>5} {row.lost:>8.1%} "
        f"{row.enlarged:>9}"
        for row in rows
    ]
    total = sum(row.pictures for row in rows)
    lost = math.fsum(row.lost * row.pictures for row in rows) / max(total, 1)
    foot = f"{'all':>11} {total:>9} {sum(row.batches for row in rows):>8} {'':>5} {lost:>8.1%} "
    return [head, *lines, foot + f"{sum(row.enlarged for row in rows):>9}"]
