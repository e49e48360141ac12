"""UniPC: a multistep prediction, corrected with the estimate made at its end, which the next step needs anyway.

In half-log-SNR lambda, with h the step, m the estimates of x0 and r_k = (lambda_k - lambda_t) / h their places,

    x_s = (sigma_s / sigma_t) x_t - alpha_s B m_t - alpha_s B sum_k rho_k (m_k - m_t) / r_k,     B = exp(-h) - 1,
    sum_k rho_k r_k^(j - 1) = j! psi_(j+1) / B,     psi_1 = -B / h,     psi_(j+1) = -psi_j / h ... (see `_weights`)

The prediction uses estimates before x_t; the correction also the one at s (r = 1), from the same x_t. With one
difference rho = 1/2 is taken, which keeps the order.

Reference: Zhao et al. 2023, arXiv:2302.04867, algorithms 5 to 8 (data prediction, B2(h) = exp(-h) - 1).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
from torch import Tensor

from latent_diffusion.diffusion.level import Denoise, Level, Step
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.path import towards, weighted_sum
from latent_diffusion.errors import ConfigError

__all__ = ["UniPC"]

Estimates = list[tuple[float, Tensor]]
"""(lambda, x0) of the levels passed, newest first; pure noise has no lambda and is left out."""


@dataclass(frozen=True)
class UniPC:
    """Deterministic; never draws from `noise`."""

    solver_order: int = 2  # p of UniPC-p, 1 .. 3: estimates used; 2 for guided, 3 for unguided pictures

    order: ClassVar[int] = 3  # of UniPC-2: the correction adds one
    intervals: ClassVar[bool] = True
    fractional: ClassVar[bool] = False
    aliases: ClassVar[tuple[str, ...]] = ("UniPC", "uni_pc_bh2", "UniPCMultistep", "UniPCMultistepScheduler")
    automatic: ClassVar[str] = "leading"
    ends_by: ClassVar[str] = "final_sigmas_type"

    def __post_init__(self) -> None:
        if self.solver_order not in (1, 2, 3):
            raise ConfigError(f"solver_order {self.solver_order!r} is out of range; use 1, 2 or 3")

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step` per pair of levels; x (B, C, h, w) float32 is at levels[0]."""
        estimates: Estimates = []
        origin: tuple[Tensor, Level] | None = None  # where the last prediction came from, and what it used
        used: Estimates = []
        count = len(levels) - 1
        for index, (level, after) in enumerate(pairwise(levels)):
            x0 = denoise(x, level)
            if origin is not None:
                x = _step(*origin, level, used, x0)
            if level.alpha == 0.0:  # the step from pure noise: first order, not corrected
                x = towards(x, x0, level, after)
            else:
                estimates = [(0.5 * level.log_snr, x0), *estimates][: self.solver_order]
                used = estimates[: 1 if after.sigma == 0.0 else count - index]
                origin = x, level
                x = _step(x, level, after, used, None)
            yield Step(index, x, x0)


def _step(x: Tensor, level: Level, after: Level, estimates: Estimates, end: Tensor | None) -> Tensor:
    """Return x (B, C, h, w) at `after`; estimates[0] was made at `level`, `end`, for a correction, at `after`."""
    (start, x0), *earlier = estimates
    x = towards(x, x0, level, after)
    h = 0.5 * after.log_snr - start
    places = [(place - start) / h for place, _ in earlier]
    differences = [(one - x0) / r for r, (_, one) in zip(places, earlier, strict=True)]
    if end is not None:
        places.append(1.0)
        differences.append(end - x0)
    if differences:
        factor = after.alpha * math.expm1(-h)
        x = x - factor * weighted_sum(_weights(places, h), differences)
    return x


def _weights(places: Sequence[float], h: float) -> list[float]:
    """Solve for rho."""
    if len(places) == 1:
        return [0.5]
    psi, wanted, factorial = -math.expm1(-h) / h - 1.0, [], 1.0
    for j in range(1, len(places) + 1):
        wanted.append(psi * factorial / math.expm1(-h))
        factorial *= j + 1
        psi = -psi / h - 1.0 / factorial
    powers = np.vander(places, increasing=True).T
    return np.linalg.solve(powers, wanted).tolist()
