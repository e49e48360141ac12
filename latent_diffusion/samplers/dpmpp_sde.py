"""DPM-Solver++ SDE, two stages: as DPM-Solver++(2S) with noise, but the halfway point is noisy too.

    x_m = ancestral step to lambda_m = (lambda_t + lambda_s) / 2 with x0(x_t) and noise n_m
    x_s = ancestral step to s with x0(x_m) and noise n_s

Both noises are increments of one Brownian motion in r = sigma / alpha: n_m over [r_m, r_t], n_s over [r_s, r_t]. Two
draws a step make them: g_1, then g_2, and with p = (r_t - r_m) / (r_t - r_s)

    n_m = g_1,   n_s = sqrt(p) g_1 + sqrt(1 - p) g_2.

Reference: Lu et al. 2022, arXiv:2211.01095, section 5 (the SDE); Karras et al. 2022, arXiv:2206.00364, section 4. One
network evaluation where an end has no log-SNR, clean or pure noise.
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
from latent_diffusion.diffusion.path import Draw, ancestor, noised, towards

__all__ = ["DPMppSDE"]


@dataclass(frozen=True)
class DPMppSDE:
    """Draws noise twice in every step but the last (once in a step from pure noise)."""

    eta: float = 1.0  # share of the ancestral noise, 0 .. 1

    order: ClassVar[int] = 2
    intervals: ClassVar[bool] = False
    fractional: ClassVar[bool] = True
    aliases: ClassVar[tuple[str, ...]] = ("DPM++ SDE", "dpmpp_sde_gpu", "DPMSolverSDE", "DPMSolverSDEScheduler")
    automatic: ClassVar[str] = "karras"

    def __post_init__(self) -> None:
        check_number("eta", self.eta, 1.0)

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step` per pair of levels; x (B, C, h, w) float32 is at levels[0]."""
        for index, (level, after) in enumerate(pairwise(levels)):
            below = ancestor(level, after, self.eta)
            draw: Draw = noise.draw
            x0 = denoise(x, level)
            if after.sigma > 0.0 and level.alpha > 0.0:
                middle = level.at(0.5 * (level.log_snr + after.log_snr))
                below_middle = ancestor(level, middle, self.eta)
                draw = _increments(noise, math.exp(0.5 * (level.log_snr - middle.log_snr)))
                halfway = noised(towards(x, x0, level, below_middle), below_middle, middle, draw)
                x0 = denoise(halfway, middle)
            x = noised(towards(x, x0, level, below), below, after, draw)
            yield Step(index, x, x0)


def _increments(noise: NoiseSource, ratio: float) -> Draw:
    """Return a `Draw` to be called twice: n_m, then n_s, with `ratio` r_m / r_t = r_s / r_m."""
    drawn: list[Tensor] = []
    share = 1.0 / (1.0 + ratio)  # (r_t - r_m) / (r_t - r_s)

    def draw(shape: Sequence[int]) -> Tensor:
        fresh = noise.draw(shape)
        drawn.append(share**0.5 * drawn[0] + (1.0 - share) ** 0.5 * fresh if drawn else fresh)
        return drawn[-1]

    return draw
