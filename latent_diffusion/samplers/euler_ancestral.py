"""Euler's method with noise: a straight step below the next level, then fresh noise back up to it.

Reference: Karras et al. 2022, arXiv:2206.00364, section 4 (steps down and noise up); the level to stop at is the one
that makes eta 1 a draw of DDPM's posterior (Ho et al. 2020, arXiv:2006.11239, eq. 7), see `path.ancestor`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from latent_diffusion.checks import check_number
from latent_diffusion.diffusion.level import Denoise, Level, Step
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.path import ancestor, noised, towards

__all__ = ["EulerAncestral"]


@dataclass(frozen=True)
class EulerAncestral:
    """Draws noise in every step but the last."""

    eta: float = 1.0  # share of the ancestral noise, 0 .. 1

    order: ClassVar[int] = 1
    intervals: ClassVar[bool] = False
    fractional: ClassVar[bool] = True
    aliases: ClassVar[tuple[str, ...]] = ("Euler a", "EulerAncestralDiscrete", "EulerAncestralDiscreteScheduler")

    def __post_init__(self) -> None:
        check_number("eta", self.eta, 1.0)

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step` per pair of levels; x (B, C, h, w) float32 is at levels[0]."""
        for index, (level, after) in enumerate(pairwise(levels)):
            x0 = denoise(x, level)
            below = ancestor(level, after, self.eta)
            x = noised(towards(x, x0, level, below), below, after, noise.draw)
            yield Step(index, x, x0)
