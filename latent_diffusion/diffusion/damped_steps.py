"""Samplers of critically damped Langevin diffusion: from u = (x, w) ~ N(0, I) at the last time back to the data.

With s the score by w, the way back is

    dx = -w da,     dw = (x + 2w + 4 s) da + 2 dW            a falls from END to 0

    EulerMaruyama    a step of Euler of all of it
    Splitting        half a step of the part that is known exactly, dx = -w da, dw = (x - 2w) da + 2 dW, then a whole
                     step of dw = 4 (w + s) da, then the other half

The exact part is the process itself with the velocity's sign turned. Neither asks for the score at time 0.
Reference: Dockhorn et al. 2022, arXiv:2112.07068, section 3.3 and algorithm 1 (symmetric splitting CLD sampler).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from latent_diffusion.checks import check_integer
from latent_diffusion.diffusion.critically_damped import END, VelocityScore, carried, kernel

__all__ = ["EulerMaruyama", "Splitting", "falling_times"]

Draw: TypeAlias = Callable[[Sequence[int]], Tensor]
"""(shape of one sample) -> standard normal (B, *shape), as `NoiseSource.draw`."""


def falling_times(steps: int, power: float = 2.0) -> list[float]:
    """Return steps + 1 times from `END` to 0: with power 1 evenly spaced, with 2 closer together towards the data.

    Reference: arXiv:2112.07068, appendix E (quadratic striding).
    """
    check_integer("steps", steps, 1, 10**6)
    return [END * (1 - k / steps) ** power for k in range(steps + 1)]


@dataclass(frozen=True)
class EulerMaruyama:
    """Euler's method; one evaluation a step."""

    order: ClassVar[int] = 1  # of mean and covariance

    def __call__(self, score: VelocityScore, u: Tensor, times: Sequence[float], draw: Draw) -> Iterator[Tensor]:
        """Yield u (B, 2C, ...) after each step; `u` is at times[0]."""
        for now, after in pairwise(times):
            step = now - after
            x, w = u.chunk(2, 1)
            noise = draw(w.shape[1:]).to(w)
            pull = x + 2.0 * w + 4.0 * score(u, now)
            u = torch.cat([x - step * w, w + step * pull + 2.0 * step**0.5 * noise], 1)
            yield u


@dataclass(frozen=True)
class Splitting:
    """Strang's splitting; `evaluations` of the score a step: 1, the paper's step of Euler, or 2, the midpoint rule."""

    evaluations: int = 1

    def __post_init__(self) -> None:
        check_integer("evaluations", self.evaluations, 1, 2)

    @property
    def order(self) -> int:
        """Order of mean and covariance: that of the step along the score."""
        return self.evaluations

    def __call__(self, score: VelocityScore, u: Tensor, times: Sequence[float], draw: Draw) -> Iterator[Tensor]:
        """Yield u (B, 2C, ...) after each step; `u` is at times[0]."""
        for now, after in pairwise(times):
            step, middle = now - after, (now + after) / 2
            u = _known_part(u, step / 2, draw)
            x, w = u.chunk(2, 1)
            pull = 4.0 * (w + score(u, middle))
            if self.evaluations == 2:
                half = w + step / 2 * pull
                pull = 4.0 * (half + score(torch.cat([x, half], 1), middle))
            u = _known_part(torch.cat([x, w + step * pull], 1), step / 2, draw)
            yield u


def _known_part(u: Tensor, step: float, draw: Draw) -> Tensor:
    """Return u after `step` of dx = -w da, dw = (x - 2w) da + 2 dW, exactly."""
    law = kernel(torch.tensor(step, dtype=torch.float64, device=u.device))
    return _turned(carried(_turned(u), law, draw(u.shape[1:]).to(u)))


def _turned(u: Tensor) -> Tensor:
    x, w = u.chunk(2, 1)
    return torch.cat([x, -w], 1)
