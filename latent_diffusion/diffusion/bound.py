"""The variational bound on -log p(x0), in nats per picture, and three ways to estimate it.

With x_{-1} = x0, the times 0 .. T - 1 of the schedule, a standard normal prior and the reverse process

    p(x_{t-1} | x_t) = N(posterior mean of (x_t, x0(x_t)), posterior variance)     for t > 0
    p(x_{-1} | x_0)  = N(x0(x_0), sigma_0^2), the decoder, sigma_0^2 = beta_0       for t = 0

the bound is written in two ways (Ho et al. 2020, arXiv:2006.11239, eq. 3 and eq. 5; derivation in appendix A):

    L = E[ -log p(x_{T-1}) - sum_t log p(x_{t-1} | x_t) / q(x_t | x_{t-1}) ]                             (eq. 3)
      = KL(q(x_{T-1} | x0) || p) + sum_{t>0} E[ KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)) ]
        - E[ log p(x_{-1} | x_0) ]                                                                        (eq. 5)

and has four functions here, equal in expectation, dearest first:

    bound_trajectory    T samples: eq. 3 on a whole path x_0 .. x_{T-1} of the forward chain; T network evaluations
    bound_all_levels    eq. 5 with every KL in closed form and one marginal draw per level; T network evaluations
    bound_two_samples   one random t per picture, a pair (x_{t-1}, x_t), the log-ratio of eq. 5 before its
                        expectation over x_{t-1} is taken in closed form; one network evaluation
    bound_one_sample    one random t per picture, x_t alone, the KL in closed form ("Rao-Blackwellised", section 2)

Of a model with learned variance, `denoise` returns (x0, v), and p(x_{t-1} | x_t) has the variance of `variance.py`. The
decoder's then lies between that of the posterior one step of the same length up and sigma^2 (the authors' code).

T, two and one count the noisy latents of a picture; why fewer is better: Luo 2022, arXiv:2208.11970, eq. 45 and 58.
The decoder is Gaussian because latents are continuous; the paper's own (eq. 13) is for 8-bit pixels. x0's dtype is the
dtype of all sums: in float64 the trajectory's large terms cancel without loss.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from latent_diffusion.diffusion.denoiser import DenoiseAt, at_times
from latent_diffusion.diffusion.forward import add_noise, forward_step, transition
from latent_diffusion.diffusion.level import NoiseSchedule
from latent_diffusion.diffusion.posterior import posterior, posterior_mean
from latent_diffusion.diffusion.variance import interpolated, parted

__all__ = [
    "bound_all_levels",
    "bound_one_sample",
    "bound_trajectory",
    "bound_two_samples",
    "level_term",
    "level_values",
    "log_normal",
    "prior_term",
]

Draw = Callable[[], Tensor]
"""Returns fresh standard normal noise shaped as x0 (B, C, h, w)."""


def prior_term(schedule: NoiseSchedule, x0: Tensor, t: int | None = None) -> Tensor:
    """Return KL(q(x_t | x0) || N(0, I)), (B,) nats, t None = T - 1: no network in it.

    Reference: arXiv:2006.11239, eq. 5, L_T.
    """
    last = schedule.level(schedule.num_train_timesteps - 1 if t is None else t)
    per_value = (last.alpha * x0) ** 2 + last.sigma**2 - 1.0 - 2.0 * math.log(last.sigma)
    return 0.5 * per_value.flatten(1).sum(1)


def level_term(
    schedule: NoiseSchedule,
    x0: Tensor,
    estimate: Tensor,
    t: Tensor,
    v: Tensor | None = None,
    before: Tensor | None = None,
) -> Tensor:
    """Return the term of eq. 5 at times t (B,), (B,) nats, the sum of `level_values`; arguments as there."""
    return level_values(schedule, x0, estimate, t, v, before).flatten(1).sum(1)


def level_values(
    schedule: NoiseSchedule,
    x0: Tensor,
    estimate: Tensor,
    t: Tensor,
    v: Tensor | None = None,
    before: Tensor | None = None,
) -> Tensor:
    """Return what each value of x0 adds to the term of eq. 5 at times t (B,), (B, C, h, w) nats.

    With a fixed variance the two Gaussians share it for t > 0, so the KL is |difference of means|^2 / (2 variance),
    which is (SNR(t - 1) - SNR(t)) |x0 - estimate|^2 / 2; for t = 0 it is the decoder's negative log-likelihood.

    Args:
        schedule: the noise law.
        x0: clean latents (B, C, h, w).
        estimate: the network's x0 at x_t, as x0.
        t: times (B,) int64.
        v: of a learned variance, as x0; None = the posterior's.
        before: the times that the steps lead to, -1 the clean latent, (B,) int64; None = t - 1.

    Reference: arXiv:2006.11239, eq. 8; Kingma et al. 2021, arXiv:2107.00630, section 4.
    """
    alpha, sigma, earlier = at_times(schedule, t, x0, before)
    step = posterior(alpha, sigma, *earlier)
    decoding = (earlier[1] == 0.0).expand_as(alpha)
    variance, ratio = _variances(schedule, t, v, (alpha, sigma), earlier, before)
    error = step.of_x0 * (x0 - estimate)  # at t = 0: of_x = 0 and of_x0 = 1
    apart = torch.log(ratio) + 1.0 / ratio - 1.0  # of two Gaussians with one mean, twice the KL: 0 at a ratio of 1
    constant = torch.where(decoding, torch.log(2.0 * math.pi * variance), apart)
    return 0.5 * (error**2 / variance + constant)


def bound_all_levels(
    denoise: DenoiseAt, schedule: NoiseSchedule, x0: Tensor, draw: Draw, times: Sequence[int] | None = None
) -> Tensor:
    """Return the bound (B,) nats with every term of eq. 5, each at one draw of its x_t.

    With `times`, rising, it is the bound of the shorter chain that ancestral sampling at these times is.

    Reference: arXiv:2006.11239, eq. 5.
    """
    visited = range(schedule.num_train_timesteps) if times is None else times
    total = prior_term(schedule, x0, visited[-1])
    for earlier, time in pairwise([-1, *visited]):
        t, before = (torch.full((x0.shape[0],), k, dtype=torch.int64, device=x0.device) for k in (time, earlier))
        total = total + _closed_form_at(denoise, schedule, x0, t, draw, before)
    return total


def bound_one_sample(denoise: DenoiseAt, schedule: NoiseSchedule, x0: Tensor, t: Tensor, draw: Draw) -> Tensor:
    """Return an unbiased estimate of the bound (B,) nats from one x_t per picture.

    Args:
        denoise: (x, t) -> x0, or (x0, v) with a learned variance.
        schedule: the noise law.
        x0: clean latents (B, C, h, w).
        t: times (B,) int64 drawn uniformly from 0 .. T - 1 by the caller.
        draw: source of noise.

    Reference: arXiv:2006.11239, eq. 5 and section 3.4 (t uniform).
    """
    return prior_term(schedule, x0) + schedule.num_train_timesteps * _closed_form_at(denoise, schedule, x0, t, draw)


def bound_two_samples(denoise: DenoiseAt, schedule: NoiseSchedule, x0: Tensor, t: Tensor, draw: Draw) -> Tensor:
    """Return an unbiased estimate of the bound (B,) nats from one pair (x_{t-1}, x_t) per picture.

    The pair comes from the forward chain: x_{t-1} by the marginal, x_t by one step from it. The term is
    log q(x_{t-1} | x_t, x0) - log p(x_{t-1} | x_t) for t > 0, and -log p(x0 | x_0) for t = 0. Its mean over x_{t-1} is
    the KL of `bound_one_sample`, its variance larger. Arguments as there.

    Reference: arXiv:2006.11239, eq. 5, the log-ratio inside L_{t-1} (appendix A, eq. 21).
    """
    alpha, sigma, before = at_times(schedule, t, x0)
    x_before = add_noise(x0, draw(), *before)
    x = forward_step(x_before, draw(), before, (alpha, sigma))
    estimate, v = parted(denoise(x, t))
    step = posterior(alpha, sigma, *before)
    decoding = (t == 0).reshape(alpha.shape)
    variance, ratio = _variances(schedule, t, v, (alpha, sigma), before)
    missed = (x_before - posterior_mean(x, estimate, step)) ** 2
    unavoidable = torch.where(decoding, 0.0, (x_before - posterior_mean(x, x0, step)) ** 2)
    constant = torch.where(decoding, torch.log(2.0 * math.pi * variance), torch.log(ratio))
    term = 0.5 * ((missed - ratio * unavoidable) / variance + constant).flatten(1).sum(1)
    return prior_term(schedule, x0) + schedule.num_train_timesteps * term


def bound_trajectory(denoise: DenoiseAt, schedule: NoiseSchedule, x0: Tensor, draw: Draw) -> Tensor:
    """Return an unbiased estimate of the bound (B,) nats from one path of T noisy latents per picture.

    Reference: arXiv:2006.11239, eq. 3.
    """
    x = x0
    total = torch.zeros(x0.shape[0], dtype=x0.dtype, device=x0.device)
    for time in range(schedule.num_train_timesteps):
        before, level = schedule.level(time - 1), schedule.level(time)
        ends = (before.alpha, before.sigma), (level.alpha, level.sigma)
        x_before, x = x, forward_step(x, draw(), *ends)
        ratio, added = transition(*ends[0], *ends[1])
        total = total + log_normal(x, ratio * x_before, float(added))  # log q(x_t | x_{t-1})
        t = torch.full((x0.shape[0],), time, dtype=torch.int64, device=x0.device)
        estimate, v = parted(denoise(x, t))
        step = posterior(*ends[1], *ends[0])
        variance = float(step.variance) if time > 0 else level.sigma**2
        if v is not None:
            alpha, sigma, earlier = at_times(schedule, t, x0)
            variance, _ = _variances(schedule, t, v, (alpha, sigma), earlier)
        total = total - log_normal(x_before, posterior_mean(x, estimate, step), variance)
    return total - log_normal(x, torch.zeros_like(x), 1.0)


def _closed_form_at(
    denoise: DenoiseAt, schedule: NoiseSchedule, x0: Tensor, t: Tensor, draw: Draw, before: Tensor | None = None
) -> Tensor:
    alpha, sigma, _ = at_times(schedule, t, x0)
    estimate, v = parted(denoise(add_noise(x0, draw(), alpha, sigma), t))
    return level_term(schedule, x0, estimate, t, v, before)


def _variances(
    schedule: NoiseSchedule,
    t: Tensor,
    v: Tensor | None,
    here: tuple[Tensor, Tensor],
    earlier: tuple[Tensor, Tensor],
    before: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the variance of the reverse step, and its ratio to the posterior's, 1 where it is fixed.

    A step to the clean latent is the decoder, whose ratio has no meaning. Its variance is fixed where no step is above
    it: in a chain of one step.
    """
    decoding = earlier[1] == 0.0
    exact = posterior(*here, *earlier).variance
    if v is None:
        return torch.where(decoding, here[1] ** 2, exact), torch.ones_like(here[0])
    above = (2 * t - (t - 1 if before is None else before)).clamp(max=schedule.num_train_timesteps - 1)
    alpha, sigma, _ = at_times(schedule, above, v)
    _, most = transition(*earlier, *here)  # of the decoder: sigma^2
    least = torch.where(decoding, posterior(alpha, sigma, *here).variance, exact)
    least = torch.where((above == t).reshape(here[1].shape) & decoding, most, least)
    variance = interpolated(least, most, v)
    return variance, variance / least


def log_normal(x: Tensor, mean: Tensor, variance: float | Tensor) -> Tensor:
    """Return log N(x; mean, variance), (B,) nats, summed over each picture; x, mean and variance (B, C, h, w)."""
    spread = 2.0 * math.pi * variance
    per_value = (x - mean) ** 2 / variance + (torch.log(spread) if isinstance(spread, Tensor) else math.log(spread))
    return -0.5 * per_value.flatten(1).sum(1)
