"""Euler's method on the probability flow: one straight step from level to level.

    z_s = z_t + (u_s - u_t) (z_t - x0) / u_t

Reference: Karras et al. 2022, arXiv:2206.00364, algorithm 1 without its correction. In exploding and in straight
coordinates alike it is `towards`, and so DDIM with eta 0; what differs is how its users space the times.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from latent_diffusion.diffusion.level import Denoise, Level, Step
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.path import towards

__all__ = ["Euler"]


@dataclass(frozen=True)
class Euler:
    """Deterministic; never draws from `noise`."""

    order: ClassVar[int] = 1
    intervals: ClassVar[bool] = False
    fractional: ClassVar[bool] = True
    aliases: ClassVar[tuple[str, ...]] = (
        "Euler",
        "EulerDiscrete",
        "EulerDiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler",
    )
    ends_by: ClassVar[str] = "final_sigmas_type"

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step` per pair of levels; x (B, C, h, w) float32 is at levels[0]."""
        for index, (level, after) in enumerate(pairwise(levels)):
            x0 = denoise(x, level)
            x = towards(x, x0, level, after)
            yield Step(index, x, x0)
