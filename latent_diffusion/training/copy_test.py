"""Has the run learned pictures by heart? The training picture nearest to each sample picture.

A sample that is nearer to a training picture than nine in ten training pictures are to each other is a copy of it, more
or less. Distances are root mean square differences of 8-bit pixels at the training size.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from latent_diffusion.data.batches.folder import ImageFolder
from latent_diffusion.data.pictures.nearest import nearest

__all__ = ["Copies", "find_copies"]

CHUNK = 256  # training pictures at a time
SEARCHED = 20_000  # training pictures that samples are compared with, evenly spaced; a set may have millions
MOST = 1000  # training pictures compared with each other


@dataclass(frozen=True)
class Copies:
    """The training picture nearest to each sample picture, in grey levels (0 .. 255).

    Attributes:
        names: file of each sample's nearest training picture.
        distances: to it.
        limit: distance that one in ten training pictures has to its own nearest; nearer samples count as copies.
        searched: number of training pictures that samples were compared with.
        pictures: number of training pictures.
    """

    names: tuple[str, ...]
    distances: tuple[float, ...]
    limit: float
    searched: int
    pictures: int

    @property
    def count(self) -> int:
        """Number of samples that count as copies."""
        return sum(distance < self.limit for distance in self.distances)

    def figures(self) -> dict[str, float]:
        """Return the figures for the log."""
        return {"copies": self.count / len(self.names), "copy_distance": min(self.distances), "copy_limit": self.limit}

    def line(self) -> str:
        """Return the result in one line."""
        first = min(range(len(self.names)), key=self.distances.__getitem__)
        part = "" if self.searched == self.pictures else f" (of {self.searched} of {self.pictures} training pictures)"
        return (
            f"copy test: {self.count} of {len(self.names)} sample pictures are nearer to a training picture than "
            f"{self.limit:.0f} grey levels, the distance of the nearest tenth of the training pictures; the nearest is "
            f"sample {first + 1} to {self.names[first]!r}, {self.distances[first]:.0f} grey levels{part}"
        )


def find_copies(pictures: list[Image], data: ImageFolder) -> Copies | None:
    """Look up sample pictures, (size, size) px each, among the training pictures; None for fewer than two of these."""
    if len(data) < 2 or not pictures:
        return None
    queries = torch.stack([torch.from_numpy(np.array(p.convert("RGB"))).permute(2, 0, 1) for p in pictures])
    asked = queries.flatten(1).float()
    best, found = torch.full((len(asked),), torch.inf), torch.zeros(len(asked), dtype=torch.long)
    searched = _spaced(len(data), SEARCHED)
    for start in range(0, len(searched), CHUNK):
        distance, number = nearest(asked, _rows(data, searched[start : start + CHUNK]))
        closer = distance < best
        best, found = torch.where(closer, distance, best), torch.where(closer, number + start, found)
    among = _rows(data, _spaced(len(data), MOST))
    between, _ = nearest(among, among, others=True)
    names = tuple(str(data.rows[searched[place]]["file_name"]) for place in found.tolist())
    limit = float(between.quantile(0.1))
    return Copies(names, tuple(best.tolist()), limit, len(searched), len(data))


def _spaced(count: int, most: int) -> range:
    """Return up to `most` of `count` numbers, evenly spaced from 0."""
    return range(0, count, -(-count // most))


def _rows(data: ImageFolder, rows: range) -> Tensor:
    return torch.stack([data.square(row) for row in rows]).flatten(1).float()
