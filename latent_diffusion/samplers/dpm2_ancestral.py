"""DPM-Solver-2 with noise: its step goes below the next level, then fresh noise brings x back up to it.

Reference: Lu et al. 2022, arXiv:2206.00927, algorithm 1 with r_1 = 1/2; where the step stops: `path.ancestor`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from latent_diffusion.checks import check_number
from latent_diffusion.diffusion.level import Denoise, Level, Step
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.path import Coordinates, ancestor, noised
from latent_diffusion.samplers.dpm2 import midpoint_step

__all__ = ["DPM2Ancestral"]


@dataclass(frozen=True)
class DPM2Ancestral:
    """Draws noise in every step but the last."""

    eta: float = 1.0  # share of the ancestral noise, 0 .. 1

    order: ClassVar[int] = 2
    intervals: ClassVar[bool] = False
    fractional: ClassVar[bool] = True
    aliases: ClassVar[tuple[str, ...]] = ("DPM2 a", "dpm_2_ancestral", "kdpm_2_a", "KDPM2AncestralDiscreteScheduler")
    automatic: ClassVar[str] = "karras"

    def __post_init__(self) -> None:
        check_number("eta", self.eta, 1.0)

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step` per pair of levels; x (B, C, h, w) float32 is at levels[0]."""
        coordinates = Coordinates.of(levels[0])
        for index, (level, after) in enumerate(pairwise(levels)):
            below = ancestor(level, after, self.eta)
            x, x0 = midpoint_step(denoise, x, level, below, coordinates)
            x = noised(x, below, after, noise.draw)
            yield Step(index, x, x0)
