"""Annealed Langevin dynamics: within each noise level, walk along the score with noise, then go on to the next level.

    x <- x + (snr sigma)^2 score(x) + sqrt(2) snr sigma noise,       `corrections` times a level

There is no step between levels: the law of one is near that of the next. At the least noisy level the last estimate of
x0 ends the walk, without noise (Jolicoeur-Martineau et al. 2020, arXiv:2009.05475, section 3.1).

Reference: Song & Ermon 2019, arXiv:1907.05600, algorithm 1; the corrector-only sampler of Song et al. 2021,
arXiv:2011.13456, appendix G. A step goes (snr sigma)^2 / variance of the way, so it takes hundreds of evaluations
where a solver takes tens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from latent_diffusion.checks import check_integer, check_number
from latent_diffusion.diffusion.level import Denoise, Level, Step
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.score import LARGEST_SNR, MOST_CORRECTIONS, langevin_step

__all__ = ["Langevin"]


@dataclass(frozen=True)
class Langevin:
    """Draws noise at every evaluation but the last, and evaluates `corrections` times a level."""

    corrections: int = 2  # evaluations a level
    snr: float = 0.4  # size of a step; its square is the share of the way to x0 where the level has noise alone

    order: ClassVar[int] = 0  # more levels do not take away the error of a step within a level
    intervals: ClassVar[bool] = False
    fractional: ClassVar[bool] = True
    aliases: ClassVar[tuple[str, ...]] = ("Annealed Langevin",)

    def __post_init__(self) -> None:
        check_integer("langevin: corrections", self.corrections, 1, MOST_CORRECTIONS)
        check_number("langevin: snr", self.snr, LARGEST_SNR)

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step` per pair of levels; x (B, C, h, w) float32 is at levels[0]."""
        for index, (level, after) in enumerate(pairwise(levels)):
            x0 = denoise(x, level)
            for _ in range(self.corrections - 1):
                x = langevin_step(x, x0, level, self.snr, noise.draw)
                x0 = denoise(x, level)
            x = langevin_step(x, x0, level, self.snr, noise.draw) if after.sigma > 0.0 else x0
            yield Step(index, x, x0)
