"""Sampling of a trajectory-consistency model: go below the next level, then add noise up to it.

    t' = floor((1 - eta) t_next),     x_t' = path from x_t with x0(x_t),     x_next = x_t' with noise up to t_next

Reference: Zheng et al. 2024, arXiv:2402.19159, section 4.3 (strategic stochastic sampling; their gamma is eta). eta 0
is DDIM, eta 1 goes down to time 0 like a consistency model. For models distilled to say any later point of the path.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from latent_diffusion.checks import check_number
from latent_diffusion.diffusion.level import Denoise, Level, Step
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.path import noised, towards

__all__ = ["TCD"]


@dataclass(frozen=True)
class TCD:
    """Draws noise in every step but the last."""

    eta: float = 0.3  # how far below the next level, as a share of its time, 0 .. 1; the paper's choice

    order: ClassVar[int] = 0
    intervals: ClassVar[bool] = False
    fractional: ClassVar[bool] = False
    aliases: ClassVar[tuple[str, ...]] = ("TCD", "TCDScheduler")
    ends_by: ClassVar[str] = "final_sigmas_type"

    def __post_init__(self) -> None:
        check_number("eta", self.eta, 1.0)

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step` per pair of levels; x (B, C, h, w) float32 is at levels[0]."""
        for index, (level, after) in enumerate(pairwise(levels)):
            x0 = denoise(x, level)
            below = after
            if self.eta > 0.0 and after.t > 0.0:
                below = after.at_time(math.floor((1.0 - self.eta) * after.t))
            x = noised(towards(x, x0, level, below), below, after, noise.draw)
            yield Step(index, x, x0)
