"""SA-Solver: stochastic Adams, a two-step prediction corrected with the estimate made at its end.

On the noisy path with eta = tau^2 (`path.exponential`), h the step in half-log-SNR,

    x_s = noisy path from x_t with x0 and noise n + alpha_s (1 + tau^2) (h^2 / 2) slope,

where `slope` is the change of x0 per half-log-SNR: over the step before for the prediction, over this step for the
correction, which starts from the same x_t with the same n. tau is 1 at times between 0.2 T and 0.8 T and 0 elsewhere.

Reference: Xue et al. 2023, arXiv:2309.05019, algorithm 1 with predictor and corrector of two steps, data prediction and
the weight h^2 / 2 of the authors' code for few steps. One network evaluation a step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from latent_diffusion.diffusion.level import Denoise, Level, Step
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.path import exponential
from latent_diffusion.errors import ConfigError

__all__ = ["SASolver"]

NOISY = (0.2, 0.8)
"""Where tau is not 0, as shares of T: the authors' choice for latent models."""


@dataclass(frozen=True)
class SASolver:
    """Draws noise in every step but the last, also where tau is 0, so that tau does not shift later draws."""

    tau: float = 1.0  # strength of the noise between 0.2 T and 0.8 T, from 0 up; 1 is the reverse process

    order: ClassVar[int] = 2
    intervals: ClassVar[bool] = True
    fractional: ClassVar[bool] = False
    aliases: ClassVar[tuple[str, ...]] = ("SA-Solver", "SASolverScheduler")
    ends_by: ClassVar[str] = "final_sigmas_type"

    def __post_init__(self) -> None:
        if not 0.0 <= self.tau <= 10.0:
            raise ConfigError(f"tau {self.tau} is out of range; use 0 (no noise) to 10, usually 1")

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step` per pair of levels; x (B, C, h, w) float32 is at levels[0]."""
        before: tuple[Tensor, Tensor, Level, Tensor] | None = None  # x, x0, level, noise of the step before
        for index, (level, after) in enumerate(pairwise(levels)):
            x0 = denoise(x, level)
            slope: Tensor | None = None
            if before is not None:
                x_before, x0_before, origin, fresh = before
                if origin.alpha > 0.0:
                    slope = (x0 - x0_before) / (0.5 * (level.log_snr - origin.log_snr))
                    x = self._step(x_before, x0_before, origin, level, slope, fresh)
            fresh = noise.draw(x.shape[1:]).to(x) if after.sigma > 0.0 else x
            before = x, x0, level, fresh
            x = self._step(x, x0, level, after, None if index == len(levels) - 2 else slope, fresh)
            yield Step(index, x, x0)

    def _step(self, x: Tensor, x0: Tensor, level: Level, after: Level, slope: Tensor | None, fresh: Tensor) -> Tensor:
        eta = self.tau_at(level) ** 2
        x = exponential(x, x0, level, after, eta, lambda shape: fresh)
        if slope is None:
            return x
        h = 0.5 * (after.log_snr - level.log_snr)
        return x + (0.5 * after.alpha * (1.0 + eta) * h**2) * slope

    def tau_at(self, level: Level) -> float:
        """Return the strength of the noise in a step from `level`."""
        assert level.law is not None, "a level made by hand has no law to find its place in"
        share = level.t / level.law.num_train_timesteps
        return self.tau if NOISY[0] <= share <= NOISY[1] else 0.0
