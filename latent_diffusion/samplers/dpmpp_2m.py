"""DPM-Solver++(2M): second order, one network evaluation a step.

In half-log-SNR lambda = log(alpha / sigma), with h = lambda_t - lambda_s the step and h_before the one before:

    D   = x0 + (h / (2 h_before)) (x0 - x0_before)
    x_t = (sigma_t / sigma_s) x_s - alpha_t (exp(-h) - 1) D

Reference: Lu et al. 2022, arXiv:2211.01095, algorithm 2. The first step has no history, and the last one to
the clean latent has an infinite h: both are of first order, which is DDIM.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from latent_diffusion.diffusion.level import Denoise, Level, Step
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.path import last_is_plain

__all__ = ["DPMpp2M"]


@dataclass(frozen=True)
class DPMpp2M:
    """Deterministic; never draws from `noise`."""

    order: ClassVar[int] = 2
    intervals: ClassVar[bool] = True
    fractional: ClassVar[bool] = False
    aliases: ClassVar[tuple[str, ...]] = ("DPM++ 2M", "DPMSolverMultistep", "DPMSolverMultistepScheduler")
    automatic: ClassVar[str] = "karras"
    ends_by: ClassVar[str] = "final_sigmas_type"

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step` per pair of levels; x (B, C, h, w) float32 is at levels[0]."""
        x0_before: Tensor | None = None
        h_before = 0.0
        for index, (level, after) in enumerate(pairwise(levels)):
            x0 = denoise(x, level)
            h = 0.5 * (after.log_snr - level.log_snr)
            estimate = x0
            plain = last_is_plain(index, levels)
            if x0_before is not None and not plain:
                estimate = x0 + (0.5 * h / h_before) * (x0 - x0_before)  # 0 after a step from zero terminal SNR
            ratio = after.sigma / level.sigma
            # alpha_t exp(-h) = alpha_s sigma_t / sigma_s, which holds where h is infinite
            x = ratio * x + (after.alpha - ratio * level.alpha) * estimate
            x0_before, h_before = x0, h
            yield Step(index, x, x0)
