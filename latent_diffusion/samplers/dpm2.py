"""DPM-Solver-2: the slope halfway, in log u, carries the whole step (the midpoint method).

    u_m = sqrt(u_t u_s),   z_m = z_t + (u_m - u_t) d_t,   z_s = z_t + (u_s - u_t) d_m

Reference: Lu et al. 2022, arXiv:2206.00927, algorithm 1 with r_1 = 1/2, whose update in noise prediction and exploding
coordinates is Karras et al. 2022, arXiv:2206.00364, algorithm 3. Two network evaluations a step, one in the last.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from latent_diffusion.diffusion.level import Denoise, Level, Step
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.path import Coordinates, towards

__all__ = ["DPM2", "midpoint_step"]


@dataclass(frozen=True)
class DPM2:
    """Deterministic; never draws from `noise`."""

    order: ClassVar[int] = 2
    intervals: ClassVar[bool] = False
    fractional: ClassVar[bool] = True
    aliases: ClassVar[tuple[str, ...]] = ("DPM2", "dpm_2", "kdpm_2", "KDPM2Discrete", "KDPM2DiscreteScheduler")
    automatic: ClassVar[str] = "karras"

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step` per pair of levels; x (B, C, h, w) float32 is at levels[0]."""
        coordinates = Coordinates.of(levels[0])
        for index, (level, after) in enumerate(pairwise(levels)):
            x, x0 = midpoint_step(denoise, x, level, after, coordinates)
            yield Step(index, x, x0)


def midpoint_step(
    denoise: Denoise, x: Tensor, level: Level, after: Level, coordinates: Coordinates
) -> tuple[Tensor, Tensor]:
    """Return x at `after` and the last estimate of x0, both (B, C, h, w)."""
    x0 = denoise(x, level)
    if after.sigma == 0.0:
        return towards(x, x0, level, after), x0
    middle = coordinates.between(level, after)
    halfway = towards(x, x0, level, middle)
    x0 = denoise(halfway, middle)
    return coordinates.follow(x, coordinates.slope(halfway, x0, middle), level, after), x0
