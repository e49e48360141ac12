"""The density of latents under a model, by the probability-flow ODE.

The noisy latent, divided by its length r = (alpha^2 + sigma^2)^(1/2), turns with the angle phi = atan(sigma / alpha):

    y = x / r = cos(phi) x0 + sin(phi) noise,      dy/dphi = v(y) = (cos(phi) y - x0(x)) / sin(phi)

(Song et al. 2021, arXiv:2011.13456, eq. 13; for variance-preserving laws r = 1 and v is that of Salimans & Ho 2022,
arXiv:2202.00512, appendix D). The log-density changes along the path by the divergence of the velocity, the sum of its
slopes (arXiv:2011.13456, eq. 39; Chen et al. 2018, arXiv:1806.07366):

    log p(y at phi_0) = log N(y at phi_1; 0, I) + integral from phi_0 to phi_1 of div v dphi

A density starts at the least noisy level, since v of the clean latent is 0 / 0. `negative_log_likelihood` adds the step
between that level and the clean latent, as the variational bound does (`bound.py`), so the two can be compared.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from latent_diffusion.diffusion.bound import log_normal
from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.diffusion.level import Denoise, Level, NoiseSchedule

__all__ = [
    "Divergence",
    "Velocity",
    "bits_per_dimension",
    "exact_divergence",
    "hutchinson",
    "log_density",
    "negative_log_likelihood",
    "path_to_noise",
    "velocity",
]

Velocity = Callable[[Tensor], Tensor]
"""y (B, C, h, w) -> dy/dphi of the same shape; the pictures of a batch do not mix."""

Divergence = Callable[[Velocity, Tensor], tuple[Tensor, Tensor]]
"""(velocity, y) -> the velocity at y, and its divergence there: (B,)."""


def velocity(denoise: Denoise, level: Level) -> Velocity:
    """Return dy/dphi at `level`, a noisy one."""
    length = math.hypot(level.alpha, level.sigma)
    cosine, sine = level.alpha / length, level.sigma / length
    return lambda y: (cosine * y - denoise(length * y, level)) / sine


def hutchinson(probes: Sequence[Tensor]) -> Divergence:
    """Return the unbiased estimate of the divergence, the mean of e . (dv/dy e) over `probes` e, each shaped as y.

    The probes have independent entries of mean 0 and variance 1; entries of +1 and -1 give the least variance.
    The same probes serve the whole path, which keeps the estimate unbiased and smooth in the angle.

    Reference: Hutchinson 1990; arXiv:2011.13456, eq. 40.
    """

    def divergence(velocity: Velocity, y: Tensor) -> tuple[Tensor, Tensor]:
        value, slopes = _with_slopes(velocity, y, probes)
        return value, torch.stack([(probe * slope).flatten(1).sum(1) for probe, slope in zip(probes, slopes)]).mean(0)

    return divergence


def exact_divergence(velocity: Velocity, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the velocity and its exact divergence: one backward pass for each number of a latent, for small ones."""
    units = torch.eye(y[0].numel(), dtype=y.dtype, device=y.device)
    value, slopes = _with_slopes(velocity, y, [unit.reshape(y[0].shape).expand_as(y) for unit in units])
    return value, sum((slope.flatten(1)[:, k] for k, slope in enumerate(slopes)), y.new_zeros(len(y)))


def path_to_noise(schedule: NoiseSchedule, steps: int) -> list[Level]:
    """Return `steps` + 1 levels of `schedule`, from time 0 to the noisiest, even in the cube root of time.

    Pictures have detail down to the least noise, and the density there has steep slopes: steps even in time lose 20
    times as much on mixtures of narrow Gaussians.
    """
    last = schedule.num_train_timesteps - 1
    return [schedule.level(last * (k / steps) ** 3, k) for k in range(steps + 1)]


def log_density(denoise: Denoise, levels: Sequence[Level], x: Tensor, divergence: Divergence) -> Tensor:
    """Return log p(x), (B,) nats, of latents x at levels[0]; the path is integrated by Heun's method, order 2.

    Args:
        denoise: the network's x0 at a level.
        levels: from the one of x to the noisiest, whose law is taken as N(0, I); two evaluations for each pair.
        x: noisy latents (B, C, h, w) at levels[0].
        divergence: `hutchinson(probes)` or `exact_divergence`.
    """
    length = math.hypot(levels[0].alpha, levels[0].sigma)
    y, total = x / length, -x[0].numel() * math.log(length) * torch.ones_like(x[:, 0, 0, 0])
    for here, there in pairwise(levels):
        step = math.atan2(there.sigma, there.alpha) - math.atan2(here.sigma, here.alpha)
        slope, spread = divergence(velocity(denoise, here), y)
        slope_there, spread_there = divergence(velocity(denoise, there), y + step * slope)
        y = y + step / 2 * (slope + slope_there)
        total = total + step / 2 * (spread + spread_there)
    return total + log_normal(y, torch.zeros_like(y), 1.0)


def negative_log_likelihood(
    denoise: Denoise, levels: Sequence[Level], x0: Tensor, noise: Tensor, divergence: Divergence
) -> Tensor:
    """Return an estimate of an upper bound on -log p(x0), (B,) nats: the ODE's density behind one noisy step.

    With x = alpha x0 + sigma noise at levels[0] and the Gaussian decoder p(x0 | x) = N(x0(x), sigma^2) of `bound.py`,

        -log p(x0) <= E[ -log p(x) + log q(x | x0) - log p(x0 | x) ]

    Args:
        denoise: the network's x0 at a level.
        levels: as for `log_density`; levels[0] is usually time 0.
        x0: clean latents (B, C, h, w).
        noise: standard normal, shaped as x0.
        divergence: as for `log_density`.

    Reference: Ho et al. 2020, arXiv:2006.11239, eq. 3, with the chain above the first level replaced by the ODE.
    """
    first = levels[0]
    x = add_noise(x0, noise, first.alpha, first.sigma)
    with torch.no_grad():
        estimate = denoise(x, first)
    density = log_density(denoise, levels, x, divergence)
    return log_normal(x, first.alpha * x0, first.sigma**2) - log_normal(x0, estimate, first.sigma**2) - density


def bits_per_dimension(nats: Tensor, x0: Tensor) -> Tensor:
    """Return a negative log-likelihood (B,) of latents x0 in bits for each of their numbers."""
    return nats / (x0[0].numel() * math.log(2.0))


def _with_slopes(velocity: Velocity, y: Tensor, vectors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return velocity(y) and, for each vector e, the gradient of e . velocity with respect to y."""
    with torch.inference_mode(False), torch.enable_grad():
        y = y.detach().clone().requires_grad_()
        value = velocity(y)
        last = len(vectors) - 1
        slopes = [torch.autograd.grad(value, y, e, retain_graph=k < last)[0] for k, e in enumerate(vectors)]
    return value.detach(), slopes
