"""PNDM, as Stable Diffusion uses it: a linear multistep method whose transfer is DDIM's (PLMS).

With d_k the slope dz / du at the k-th level,

    d = (55 d_k - 59 d_{k-1} + 37 d_{k-2} - 9 d_{k-3}) / 24,     z_s = z_t + (u_s - u_t) d

Reference: Liu et al. 2022, arXiv:2202.09778, eq. 9 (transfer), 12 (multistep) and section 3.5: the first step is
Heun's, the second and third have two and three slopes. One network evaluation a step, two in the first; a walk of a
single step is DDIM's, with one, as in diffusers. The coefficients are those of equal steps in time, which makes it of
second order ("pseudo" numerical). Velocities are turned into slopes one by one; diffusers averages velocities of
different levels, and differs for v models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from latent_diffusion.diffusion.level import Denoise, Level, Step
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.path import Coordinates, towards, weighted_sum

__all__ = ["PNDM"]

ADAMS_BASHFORTH = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""Weights of the latest slopes, newest first (arXiv:2202.09778, eq. 12 and its forerunners)."""


@dataclass(frozen=True)
class PNDM:
    """Deterministic; never draws from `noise`."""

    order: ClassVar[int] = 2
    intervals: ClassVar[bool] = False
    fractional: ClassVar[bool] = False
    aliases: ClassVar[tuple[str, ...]] = ("PLMS", "PNDM", "PNDMScheduler")
    automatic: ClassVar[str] = "leading"
    ends_by: ClassVar[str] = "set_alpha_to_one"

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step` per pair of levels; x (B, C, h, w) float32 is at levels[0]."""
        coordinates = Coordinates.of(levels[0])
        slopes: list[Tensor] = []  # newest first
        for index, (level, after) in enumerate(pairwise(levels)):
            x0 = denoise(x, level)
            if after.sigma == 0.0 or len(levels) == 2:
                yield Step(index, towards(x, x0, level, after), x0)
                return
            slopes = [coordinates.slope(x, x0, level), *slopes[:3]]
            if len(slopes) == 1:
                guess = towards(x, x0, level, after)
                x0 = denoise(guess, after)
                slope = 0.5 * (slopes[0] + coordinates.slope(guess, x0, after))
            else:
                slope = weighted_sum(ADAMS_BASHFORTH[len(slopes)], slopes)
            x = coordinates.follow(x, slope, level, after)
            yield Step(index, x, x0)
