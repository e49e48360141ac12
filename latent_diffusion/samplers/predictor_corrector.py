"""Predictor-corrector sampling: an ancestral step to the next level, then steps of Langevin's dynamics within it.

    predictor   x <- a draw of q(x_s | x_t, x0)                              DDPM's step
    corrector   x <- x + (snr sigma_s)^2 score(x) + sqrt(2) snr sigma_s noise       `corrections` times

The corrector brings x back to the law of its level from wherever the predictor's error led. With no corrections it is
`ddpm`, bit for bit. The last step leads to the clean latent, which is not corrected.

Reference: Song et al. 2021, arXiv:2011.13456, algorithms 3 and 5; snr 0.16 is the paper's, appendix G.
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
from latent_diffusion.samplers.ddpm import DDPM

__all__ = ["PredictorCorrector"]


@dataclass(frozen=True)
class PredictorCorrector:
    """Draws noise in every step but the last, and once for each correction; 1 + `corrections` evaluations a step."""

    corrections: int = 1  # steps within each level
    snr: float = 0.16  # size of those steps; the paper's

    order: ClassVar[int] = 0  # more levels do not take away the error of a step within a level
    intervals: ClassVar[bool] = False
    fractional: ClassVar[bool] = False
    aliases: ClassVar[tuple[str, ...]] = ("Predictor-corrector",)

    def __post_init__(self) -> None:
        check_integer("predictor_corrector: corrections", self.corrections, 0, MOST_CORRECTIONS)
        check_number("predictor_corrector: snr", self.snr, LARGEST_SNR)

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step` per pair of levels; x (B, C, h, w) float32 is at levels[0]."""
        for index, (level, after) in enumerate(pairwise(levels)):
            (step,) = DDPM()(denoise, x, (level, after), noise)
            x, x0 = step.x, step.x0
            for _ in range(self.corrections if after.sigma > 0.0 else 0):
                x0 = denoise(x, after)
                x = langevin_step(x, x0, after, self.snr, noise.draw)
            yield Step(index, x, x0)
