"""Connected parts of a mask, and the things of a picture before a ground of one colour."""

from dataclasses import dataclass

import numpy as np

from latent_diffusion.data.composed.colours import to_oklab

__all__ = ["Thing", "border_colour", "label", "mask_of_things", "things"]

DISTANCE = 0.1
"""Least distance in Oklab from the ground at which a pixel belongs to a thing."""
LEAST = 0.008  # share of the picture that a part must have
LEAST_OF_LARGEST = 0.2  # share of the largest part that another must have to count


@dataclass(frozen=True)
class Thing:
    """A connected part: its mask (H, W), its pixels, and its centre of mass from top left (0, 0) to (1, 1)."""

    mask: np.ndarray
    area: int
    y: float
    x: float


def label(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the number 1..n of the part that each pixel of `mask` (H, W) is in (8 neighbours), 0 outside, and n."""
    numbers = np.zeros(mask.shape, int)
    parent = [0]

    def root(k: int) -> int:
        while parent[k] != k:
            k = parent[k]
        return k

    before: list[tuple[int, int, int]] = []
    for y, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
        runs = []
        for start, stop in edges.reshape(-1, 2).tolist():
            near = {root(k) for first, last, k in before if first <= stop and last >= start}
            number = min(near, default=len(parent))
            if not near:
                parent.append(number)
            for k in near:
                parent[k] = number
            numbers[y, start:stop] = number
            runs.append((start, stop, number))
        before = runs
    roots = np.array([root(k) for k in range(len(parent))])
    kept, order = np.unique(roots[1:], return_inverse=True)
    return np.concatenate([[0], order + 1])[numbers], len(kept)


def border_colour(lab: np.ndarray, width: int = 2) -> np.ndarray:
    """Return the median colour (3,) of the border of (H, W, 3) Oklab: that of the ground."""
    inner = np.zeros(lab.shape[:2], bool)
    inner[width:-width, width:-width] = True
    return np.median(lab[~inner], axis=0)


def mask_of_things(rgb: np.ndarray) -> np.ndarray:
    """Return what is not ground (H, W) in a picture (H, W, 3) uint8 before a ground of one colour."""
    lab = to_oklab(rgb)
    return np.linalg.norm(lab - border_colour(lab), axis=-1) > DISTANCE


def things(mask: np.ndarray) -> list[Thing]:
    """Return the connected parts of a mask (H, W) that are large enough to be things, largest first."""
    height, width = mask.shape
    numbers, count = label(mask)
    areas = np.bincount(numbers.reshape(-1), minlength=count + 1)
    areas[0] = 0
    least = max(LEAST * mask.size, LEAST_OF_LARGEST * areas.max())
    found = []
    for number in np.argsort(-areas, kind="stable"):
        if areas[number] and areas[number] >= least:
            own = numbers == number
            y, x = np.nonzero(own)
            found.append(Thing(own, int(areas[number]), float(y.mean() + 0.5) / height, float(x.mean() + 0.5) / width))
    return found
