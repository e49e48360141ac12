"""A noise schedule found by training: the levels at which the bound's estimator varies least.

With gamma = -log SNR, rising over u in [0, 1], the variational bound in continuous time has the diffusion term

    L = 1/2 E_u[ gamma'(u) |noise - noise(x)|^2 ] = 1/2 integral of E|noise - noise(x)|^2 dgamma

(Kingma et al. 2021, arXiv:2107.00630, section 5). The integral is the same however gamma rises; what a schedule changes
is the variance of the estimate from one u. The mean being fixed, the variance is least where the mean square is,

    M = E_u[ (gamma'(u) e / 2)^2 ],   e = |noise - noise(x)|^2.

Its derivative needs no gradient of the denoiser. At points gamma_i = gamma(u_i) that are held fixed, M is the mean of
e^2 gamma'(u_i) gamma'(u(gamma_i)) / 4: the first slope, held fixed too, is the density of the points, and in the second
the schedule moves below them, u(gamma_i) = u_i - (gamma(u_i) - gamma_i) / gamma'(u_i) to first order. M is least with
gamma' in proportion to 1 / sqrt(E e^2).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from latent_diffusion.diffusion.denoiser import DenoiseAt, at_times
from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.diffusion.level import NoiseSchedule
from latent_diffusion.diffusion.variance import parted
from latent_diffusion.errors import ConfigError

__all__ = ["Rising", "diffusion_term", "ends", "mean_square", "noise_error", "own_schedule", "table", "times_at"]

Rising = Callable[[Tensor], tuple[Tensor, Tensor]]
"""u (B,), 0 to 1 -> gamma (B,), rising, and its slope gamma' (B,)."""


def ends(schedule: NoiseSchedule) -> tuple[float, float]:
    """Return gamma at times 0 and T - 1: the ends of every schedule for a network that was trained with this law.

    Raises:
        ConfigError: the noisiest level has no signal, where gamma is infinite.
    """
    last = schedule.level(schedule.num_train_timesteps - 1)
    if last.alpha == 0.0:
        raise ConfigError("a schedule is learned between finite noise levels; this noise law ends on pure noise")
    return -schedule.level(0).log_snr, -last.log_snr


def times_at(schedule: NoiseSchedule, gamma: Tensor) -> Tensor:
    """Return the times of `schedule`, float64 (B,), at which it has the noise levels gamma (B,)."""
    times = [schedule.time_of(-value) for value in gamma.detach().double().tolist()]
    return torch.tensor(times, dtype=torch.float64, device=gamma.device)


def noise_error(denoise: DenoiseAt, schedule: NoiseSchedule, x0: Tensor, noise: Tensor, gamma: Tensor) -> Tensor:
    """Return e = |noise - noise(x)|^2, (B,), summed over each picture, of one draw at the levels gamma (B,).

    Args:
        denoise: (x, t) -> x0, at fractional times too.
        schedule: the law that the network was trained with.
        x0: clean latents (B, C, h, w).
        noise: standard normal, as x0.
        gamma: noise levels.
    """
    t = times_at(schedule, gamma)
    alpha, sigma, _ = at_times(schedule, t, x0)
    estimate, _ = parted(denoise(add_noise(x0, noise, alpha, sigma), t))
    return (alpha / sigma * (x0 - estimate)).square().flatten(1).sum(1)


def diffusion_term(error: Tensor, slope: Tensor) -> Tensor:
    """Return the estimates (B,) nats of L, from e (B,) and gamma' (B,) at u drawn uniformly.

    Reference: arXiv:2107.00630, section 5.
    """
    return 0.5 * slope * error


def mean_square(rising: Rising, u: Tensor, error: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the squares (B,) of the estimates at u (B,), with the gradient of M with respect to the schedule.

    Args:
        rising: the schedule.
        u: drawn uniformly from [0, 1].
        error: gamma (B,) -> e (B,); no gradient passes through it.
    """
    gamma, slope = rising(u)
    fixed, held = gamma.detach(), slope.detach()
    e = error(fixed).detach()
    _, moved = rising(u - (gamma - fixed) / held)
    return 0.25 * e.square() * held * moved


def own_schedule(schedule: NoiseSchedule) -> Rising:
    """Return gamma of a discrete law, with times in equal parts of u: what uniform times of training are."""
    last = schedule.num_train_timesteps - 1
    table = np.array([-schedule.level(t).log_snr for t in range(last + 1)])

    def rising(u: Tensor) -> tuple[Tensor, Tensor]:
        times = (u.detach().double() * last).cpu().numpy()
        rows = np.minimum(times.astype(int), last - 1)
        low, high = table[rows], table[rows + 1]
        values = low + (times - rows) * (high - low), (high - low) * last
        gamma, slope = (torch.from_numpy(value).to(u) for value in values)
        return gamma, slope

    return rising


@torch.no_grad()
def table(rising: Rising, schedule: NoiseSchedule, steps: int) -> list[float]:
    """Return the `steps` times that equal parts of u are, noisiest first, u = 0 left out: a spacing for any sampler.

    The schedule is that of a float64 network on the CPU.
    """
    gamma, _ = rising(torch.arange(steps, 0, -1, dtype=torch.float64) / steps)
    return times_at(schedule, gamma).tolist()
