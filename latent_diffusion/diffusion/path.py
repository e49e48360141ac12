"""The deterministic path from noise to picture, and the step that goes too far and comes back.

The probability flow is simplest in coordinates z = x / scale with a noise level u, in which it reads

    dz / du = (z - x0) / u

(Karras et al. 2022, arXiv:2206.00364, eq. 1 and 3). Two choices have that form:

    exploding   scale = alpha            u = sigma / alpha             z = x0 + u noise, Karras' own
    straight    scale = alpha + sigma    u = sigma / (alpha + sigma)   z = (1 - u) x0 + u noise, rectified flow

The first is what samplers for variance-preserving models are written in; it has no place for a level without signal,
where u is infinite. The second has (u = 1), and equals x itself on a rectified flow. `Coordinates.of` chooses by where
a run starts: straight from levels with alpha + sigma = 1, which are those of a flow and those of zero terminal SNR.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from latent_diffusion.diffusion.forward import forward_step
from latent_diffusion.diffusion.level import Coefficient, Level

__all__ = [
    "FEW_STEPS", "Coordinates", "Draw", "ancestor", "ddim", "exponential", "last_is_plain", "noised", "towards",
    "weighted_sum",
]  # fmt: skip

Draw = Callable[[Sequence[int]], Tensor]
"""(C, h, w) -> standard normal (B, C, h, w): `NoiseSource.draw`."""

Noise = tuple[Coefficient, Coefficient]
"""(alpha, sigma) of a level."""


def towards(x: Tensor, x0: Tensor, level: Level, after: Level) -> Tensor:
    """Carry x (B, C, h, w) from `level` to `after` along the path on which the estimate x0 does not change.

    This is Euler's step in either coordinates, DDIM's, and the first-order exponential integrator of DPM-Solver++
    (arXiv:2211.01095, eq. 9). Exact where x0 is; x0 itself at the clean level.
    """
    return ddim(x, x0, (level.alpha, level.sigma), (after.alpha, after.sigma))


def ddim(x: Tensor, x0: Tensor, level: Noise, after: Noise) -> Tensor:
    """Carry x from `level` to `after` with the estimate x0; all (B, C, h, w), or host floats for the levels.

    Reference: Song et al. 2021, arXiv:2010.02502, eq. 12 with variance 0.
    """
    ratio = after[1] / level[1]
    return ratio * x + (after[0] - ratio * level[0]) * x0


def exponential(x: Tensor, x0: Tensor, level: Level, after: Level, eta: float, draw: Draw) -> Tensor:
    """Carry x (B, C, h, w) from `level` to `after` along the noisy path on which x0 does not change.

    With h the fall of log r, r = sigma / alpha, over the step,

        x_s = (sigma_s / sigma_t) exp(-eta h) x_t + alpha_s (1 - exp(-(1 + eta) h)) x0
              + sigma_s sqrt(1 - exp(-2 eta h)) noise

    eta 0 is `towards`; eta 1 the reverse process of Song et al. 2021, arXiv:2011.13456, eq. 6. No noise is drawn where
    its factor is 0.

    Reference: Lu et al. 2022, arXiv:2211.01095, section 5 (eta 1); Xue et al. 2023, arXiv:2309.05019 (eta = tau^2).
    """
    falls = after.sigma * level.alpha / (after.alpha * level.sigma)  # exp(-h): 0 from pure noise and to the clean level
    ratio = after.sigma / level.sigma * falls**eta
    x = ratio * x + (after.alpha - ratio * level.alpha) * x0
    added = after.sigma * math.sqrt(1.0 - falls ** (2.0 * eta))
    return x + added * draw(x.shape[1:]).to(x) if added > 0.0 else x


@dataclass(frozen=True)
class Coordinates:
    """z = x / scale and u, in which the slope of the path is (z - x0) / u."""

    straight: bool

    @classmethod
    def of(cls, first: Level) -> "Coordinates":
        """Return the coordinates for a run that starts at `first`."""
        return cls(straight=math.isclose(first.alpha + first.sigma, 1.0, rel_tol=0.0, abs_tol=1e-9))

    def scale(self, level: Level) -> float:
        """Return x / z."""
        return level.alpha + level.sigma if self.straight else level.alpha

    def u(self, level: Level) -> float:
        """Return the noise level: 0 clean, at most 1 if straight, finite else."""
        return level.sigma / self.scale(level)

    def log_snr(self, u: float) -> float:
        """Return the log-SNR at noise level u, at most 1 if straight; inverse of `u`."""
        if u == 0.0:
            return math.inf
        signal = 1.0 - u if self.straight else 1.0
        return 2.0 * (math.log(signal) - math.log(u)) if signal > 0.0 else -math.inf

    def between(self, level: Level, after: Level) -> Level:
        """Return the level halfway in log u, the geometric mean."""
        return level.at(self.log_snr(math.sqrt(self.u(level) * self.u(after))))

    def slope(self, x: Tensor, x0: Tensor, level: Level) -> Tensor:
        """Return dz / du at x (B, C, h, w): the noise if exploding, noise - x0 if straight."""
        return (x / self.scale(level) - x0) / self.u(level)

    def follow(self, x: Tensor, slope: Tensor, level: Level, after: Level) -> Tensor:
        """Carry x from `level` to `after` with one slope dz / du."""
        scale = self.scale(after)
        return (scale / self.scale(level)) * x + (scale * (self.u(after) - self.u(level))) * slope


FEW_STEPS = 15
"""Below this many steps a multistep solver lowers its order at the end (DPM-Solver's authors' code, diffusers)."""


def last_is_plain(index: int, levels: Sequence[Level]) -> bool:
    """Whether step `index` is the last one and of first order: to the clean level, or of fewer than 15 steps."""
    return index == len(levels) - 2 and (levels[-1].sigma == 0.0 or len(levels) - 1 < FEW_STEPS)


def weighted_sum(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """Return sum_k weights[k] * tensors[k], all (B, C, h, w)."""
    total = weights[0] * tensors[0]
    for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
        total = total + weight * tensor
    return total


def ancestor(level: Level, after: Level, eta: float) -> Level:
    """Return the level below `after` from which noise brings x back up to `after`, for a step from `level`.

    With r = sigma / alpha the step from r to r' has the noise variance eta^2 times that of the posterior,
    r'^2 (r^2 - r'^2) / r^2 (DDPM, arXiv:2006.11239, eq. 7), and the path is followed down to

        r_down^2 = r'^2 - eta^2 r'^2 (1 - r'^2 / r^2).

    eta 0 is `after` itself; eta 1 from pure noise is the clean level, since nothing of x is worth keeping.
    """
    if eta == 0.0 or after.sigma == 0.0:
        return after
    falls = (after.sigma * level.alpha / (after.alpha * level.sigma)) ** 2  # r'^2 / r^2, 0 from pure noise
    kept = 1.0 - eta**2 * (1.0 - falls)  # r_down^2 / r'^2
    return after.at(after.log_snr - math.log(kept) if kept > 0.0 else math.inf)


def noised(x: Tensor, below: Level, after: Level, draw: Draw) -> Tensor:
    """Bring x (B, C, h, w) from `below` up to `after` with fresh noise; none is drawn where they are the same."""
    if below is after:
        return x
    fresh = draw(x.shape[1:]).to(x)
    return forward_step(x, fresh, (below.alpha, below.sigma), (after.alpha, after.sigma))
