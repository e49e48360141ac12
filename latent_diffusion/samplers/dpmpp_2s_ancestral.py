"""DPM-Solver++(2S) with noise: the estimate of x0 halfway, in log-SNR, carries a step below the next level.

    x_m = path to lambda_m = (lambda_t + lambda_s) / 2 with x0(x_t),   x_s = path from x_t to s with x0(x_m)

Reference: Lu et al. 2022, arXiv:2211.01095, algorithm 1 with r = 1/2; where the step stops and noise sets in:
`path.ancestor`. Two network evaluations a step; one where an end has no log-SNR, clean or pure noise.
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

__all__ = ["DPMpp2SAncestral"]


@dataclass(frozen=True)
class DPMpp2SAncestral:
    """Draws noise in every step but the last."""

    eta: float = 1.0  # share of the ancestral noise, 0 .. 1

    order: ClassVar[int] = 2
    intervals: ClassVar[bool] = False
    fractional: ClassVar[bool] = True
    aliases: ClassVar[tuple[str, ...]] = ("DPM++ 2S a", "DPM++ 2S Ancestral")
    automatic: ClassVar[str] = "karras"

    def __post_init__(self) -> None:
        check_number("eta", self.eta, 1.0)

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step` per pair of levels; x (B, C, h, w) float32 is at levels[0]."""
        for index, (level, after) in enumerate(pairwise(levels)):
            below = ancestor(level, after, self.eta)
            x0 = denoise(x, level)
            if below.sigma > 0.0 and level.alpha > 0.0:
                middle = level.at(0.5 * (level.log_snr + below.log_snr))
                x0 = denoise(towards(x, x0, level, middle), middle)
            x = noised(towards(x, x0, level, below), below, after, noise.draw)
            yield Step(index, x, x0)
