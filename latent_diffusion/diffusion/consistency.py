"""Consistency functions: every point of a path of the probability-flow ODE is mapped to the path's clean end.

    f(x, t) = c_skip(t) x + c_out(t) x0(x, t),      f(x, clean) = x

    c_skip = d^2 / (s^2 + d^2),    c_out = s / sqrt(s^2 + d^2),    s = scale (t + 1),  the distance to the clean time -1

A network learns f from a teacher by one step of DDIM between neighbouring times of a grid: f at the noisier one must
equal f at the other. On the grid of N times, T / N apart, the solution is N DDIM steps of the teacher.

Reference: Song et al. 2023, arXiv:2303.01469, eq. 5 and algorithm 2; Luo et al. 2023, arXiv:2310.04378, algorithm 1 and
section 4.3 (the grid: "skipping-step"). There c_out has a factor d too, which is left out here as in the authors' code,
so that f is x0 where noise prevails. Their path ends at the least noisy time 0, here at the clean latent, as the
samplers do.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latent_diffusion.diffusion.denoiser import at_times
from latent_diffusion.diffusion.level import CLEAN_TIME, NoiseSchedule
from latent_diffusion.diffusion.path import ddim
from latent_diffusion.diffusion.prediction import Prediction
from latent_diffusion.errors import ConfigError

__all__ = ["Consistency", "between", "guided", "pseudo_huber"]


@dataclass(frozen=True)
class Consistency:
    """The form of f for one noise law and one meaning of the network's output.

    Attributes:
        schedule: the noise law.
        prediction: what the network's output means.
        steps: N, times of the grid; a divisor of T.
        data_std: d, about the deviation of a latent's values.
        time_scale: `scale` above.

    Raises:
        ConfigError: a number of steps that does not divide T.
    """

    schedule: NoiseSchedule
    prediction: Prediction
    steps: int = 50
    data_std: float = 0.5
    time_scale: float = 10.0

    def __post_init__(self) -> None:
        total = self.schedule.num_train_timesteps
        if self.steps < 1 or total % self.steps:
            raise ConfigError(f"{self.steps} steps of the teacher do not divide its {total} times; use a divisor")

    @property
    def stride(self) -> int:
        """Distance of neighbouring times of the grid, T / N."""
        return self.schedule.num_train_timesteps // self.steps

    def times(self) -> np.ndarray:
        """Return the times of the grid, rising, int64 (N,): the clean time is one stride before the first."""
        return np.arange(1, self.steps + 1) * self.stride + int(CLEAN_TIME)

    def scalings(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return c_skip and c_out, float64 (B,) each, for times t (B,); exactly 1 and 0 at the clean time."""
        s, d = self.time_scale * (t.double() - CLEAN_TIME), self.data_std
        return d**2 / (s**2 + d**2), s / (s**2 + d**2).sqrt()

    def x0(self, network: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
        """Return the network's estimate of x0 at x (B, C, h, w) and integer times t (B,), 0 .. T - 1.

        `network` maps x and its own times (B,) float32 to an output (B, C, h, w).
        """
        alpha, sigma, before = at_times(self.schedule, t, x)
        output = network(x, self.schedule.network_time(t).float()).to(x.dtype)
        return self.prediction.x0(output, x, alpha, sigma, before)

    def __call__(self, network: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
        """Return f (B, C, h, w) at x (B, C, h, w) and integer times t (B,), -1 (clean) .. T - 1."""
        skip, out = (c.to(x).view(-1, *[1] * (x.ndim - 1)) for c in self.scalings(t))
        return skip * x + out * self.x0(network, x, t.clamp(min=0))

    def back(self, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """Carry x (B, C, h, w) from times t (B,) of the grid to the times before by one step with the estimate x0."""
        return between(self.schedule, x, x0, t, (t - self.stride).clamp(min=int(CLEAN_TIME)))


def between(schedule: NoiseSchedule, x: Tensor, x0: Tensor, t: Tensor, after: Tensor) -> Tensor:
    """Carry x (B, C, h, w) from times t (B,) to times `after` (B,) by one step of DDIM with the estimate x0."""
    (alpha, sigma, _), (alpha_after, sigma_after, _) = (at_times(schedule, time, x) for time in (t, after))
    return ddim(x, x0, (alpha, sigma), (alpha_after, sigma_after))


def pseudo_huber(error: Tensor, c: float) -> Tensor:
    """Return the mean of sqrt(e^2 + c^2) - c over each picture, (B,), for errors (B, C, h, w).

    Reference: Song & Dhariwal 2023, arXiv:2310.14189, section 3.3; with c = 0.001 in the code of arXiv:2310.04378.
    """
    return ((error.square() + c * c).sqrt() - c).flatten(1).mean(1)


def guided(x0: Tensor, empty: Tensor, scale: float) -> Tensor:
    """Return the teacher's estimate under classifier-free guidance; both estimates (B, C, h, w).

    Reference: Ho & Salimans 2022, arXiv:2207.12598, eq. 6 (scale = 1 + w).
    """
    return torch.lerp(empty, x0, scale)
