"""Heun's method on the probability flow: the slope at the start averaged with the slope at the end.

    z_s = z_t + (u_s - u_t) (d_t + d_s) / 2,     d = dz / du

Reference: Karras et al. 2022, arXiv:2206.00364, algorithm 1. Two network evaluations a step, one in the last, which
ends where the slope is not defined. In straight coordinates this is Heun's method of rectified flow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from latent_diffusion.diffusion.level import Denoise, Level, Step
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.path import Coordinates, towards

__all__ = ["Heun", "heun_step"]


@dataclass(frozen=True)
class Heun:
    """Deterministic; never draws from `noise`."""

    order: ClassVar[int] = 2
    intervals: ClassVar[bool] = False
    fractional: ClassVar[bool] = True
    aliases: ClassVar[tuple[str, ...]] = (
        "Heun",
        "HeunDiscrete",
        "HeunDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
    )

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step` per pair of levels; x (B, C, h, w) float32 is at levels[0]."""
        coordinates = Coordinates.of(levels[0])
        for index, (level, after) in enumerate(pairwise(levels)):
            x, x0 = heun_step(denoise, x, level, after, coordinates)
            yield Step(index, x, x0)


def heun_step(
    denoise: Denoise, x: Tensor, level: Level, after: Level, coordinates: Coordinates
) -> tuple[Tensor, Tensor]:
    """Return x at `after` and the last estimate of x0, both (B, C, h, w)."""
    x0 = denoise(x, level)
    guess = towards(x, x0, level, after)
    if after.sigma == 0.0:
        return guess, x0
    slope = coordinates.slope(x, x0, level)
    x0 = denoise(guess, after)
    slope = 0.5 * (slope + coordinates.slope(guess, x0, after))
    return coordinates.follow(x, slope, level, after), x0
