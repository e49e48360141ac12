"""A network seen as an estimator of the clean latent: the one place where its dtype and its output are translated.

float32 in, float32 out; the network runs in its own dtype in between. That a sampler should see a denoiser, not a
network, is Karras et al. 2022, arXiv:2206.00364, eq. 7.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.level import CLEAN_TIME, Denoise, Level, NoiseSchedule
from latent_diffusion.diffusion.prediction import Prediction, check_prediction
from latent_diffusion.diffusion.variance import Estimate, Ranged, mean_and_range

__all__ = ["DenoiseAt", "Denoiser", "Network"]

DenoiseAt = Callable[[Tensor, Tensor], Estimate]
"""(x (B, C, h, w), t (B,) int64) -> x0 (B, C, h, w): a denoiser whose images may be at different levels.

One of a model with learned variance returns x0 and v (`variance.py`), the same shape each."""


class Network(Protocol):
    """The interface of a network to the mathematics."""

    def project(self, cond: Conditioning) -> Any:
        """Return all that depends on the condition only."""
        ...

    def __call__(self, x: Tensor, t: Tensor, projected: Any) -> Tensor:
        """Return the output (B, C, h, w) at x (B, C, h, w) and times t (B,); with learned variance, of 2 C channels."""
        ...


@dataclass(frozen=True)
class Denoiser:
    """Network, noise law and the meaning of the network's output."""

    network: Network
    schedule: NoiseSchedule
    prediction: Prediction
    dtype: torch.dtype = torch.float32  # what the network computes in
    learned_variance: bool = False  # whether the network's output has a second half, which chooses the variance
    reads_concat: bool = True  # whether the network reads a condition's `concat`; if not, it is left out

    def __post_init__(self) -> None:
        check_prediction(self.prediction, self.schedule.level(self.schedule.num_train_timesteps - 1).alpha)

    def bind(self, cond: Conditioning) -> Denoise:
        """Fix the condition (B rows) and return `denoise(x, level) -> x0` for batches of B.

        With a learned variance it is `Ranged`.
        """
        projected = self._project(cond)

        def times(x: Tensor, level: Level) -> Tensor:
            return torch.full((len(x),), self.schedule.network_time(level.t), dtype=torch.float32, device=x.device)

        def denoise(x: Tensor, level: Level) -> Tensor:
            return self.x0(self.network(x.to(self.dtype), times(x, level), projected).to(x.dtype), x, level)

        def both(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
            mean, v = mean_and_range(self.network(x.to(self.dtype), times(x, level), projected).to(x.dtype))
            return self.x0(mean, x, level), v

        return Ranged(both) if self.learned_variance else denoise

    def x0(self, output: Tensor, x: Tensor, level: Level) -> Tensor:
        """Return the x0 that the network's `output` (B, C, h, w) at `x` stands for."""
        return self.prediction.x0(output, x, level.alpha, level.sigma, self._before(level))

    def output(self, x0: Tensor, x: Tensor, level: Level) -> Tensor:
        """Return the network output (B, C, h, w) that stands for `x0` at `x`."""
        return self.prediction.output(x0, x, level.alpha, level.sigma, self._before(level))

    def _project(self, cond: Conditioning) -> Any:
        """Return what of the condition the network reads, projected."""
        read = cond if self.reads_concat else replace(cond, concat=None)
        return self.network.project(read.to(dtype=self.dtype))

    def _before(self, level: Level) -> tuple[float, float]:
        before = self.schedule.level(max(level.t - 1.0, CLEAN_TIME))
        return before.alpha, before.sigma

    def bind_times(self, cond: Conditioning) -> DenoiseAt:
        """Fix the condition and return `denoise(x, t)` with one training time per image (for `bound.py`)."""
        projected = self._project(cond)

        def denoise(x: Tensor, t: Tensor) -> Estimate:
            output = self.network(x.to(self.dtype), self.schedule.network_time(t).float(), projected).to(x.dtype)
            mean, v = mean_and_range(output) if self.learned_variance else (output, None)
            alpha, sigma, before = at_times(self.schedule, t, x)
            x0 = self.prediction.x0(mean, x, alpha, sigma, before)
            return x0 if v is None else (x0, v)

        return denoise


def at_times(
    schedule: NoiseSchedule, t: Tensor, x: Tensor, before: Tensor | None = None
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Return alpha, sigma and (alpha, sigma) earlier at integer times t (B,), shaped (B, 1, 1, 1) as x.

    Earlier is one training step, or the times `before` (B,), -1 being the clean latent.
    """
    shape = (-1, *[1] * (x.dim() - 1))

    def shaped(time: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = schedule.alpha_sigma(time)
        return alpha.to(x).reshape(shape), sigma.to(x).reshape(shape)

    alpha, sigma = shaped(t)
    return alpha, sigma, shaped(t - 1 if before is None else before)
