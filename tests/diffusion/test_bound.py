"""The variational bound and its estimators, where everything is known in closed form.

A denoiser linear in x, x0(x) = k_t x + c, makes the reverse chain Gaussian. So the bound of a picture is a sum of
squares (no sampling), and the model's own density p(x0) is a Gaussian found by carrying its moments down the chain.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from latent_diffusion.diffusion.bound import (
    bound_all_levels,
    bound_one_sample,
    bound_trajectory,
    bound_two_samples,
    level_term,
    prior_term,
)
from latent_diffusion.diffusion.denoiser import at_times
from latent_diffusion.diffusion.discrete_vp import DiscreteVP
from latent_diffusion.diffusion.posterior import posterior
from latent_diffusion.schedules.linear import LinearSchedule

STEPS = 12
SCHEDULE = LinearSchedule(num_train_timesteps=STEPS, beta_start=0.02, beta_end=0.5)
PICTURE = torch.tensor([0.9, -0.4, 0.1, 1.7], dtype=torch.float64).reshape(1, 1, 2, 2)
MEAN, SPREAD = 0.2, 0.8
DRAWS = 40_000


def gain(level):
    """k_t: close to the best denoiser of N(MEAN, SPREAD^2) data, but 10 % off, so that no term is trivial."""
    return 0.9 * level.alpha * SPREAD**2 / (level.alpha**2 * SPREAD**2 + level.sigma**2)


def denoise(x, t):
    gains = torch.tensor([gain(SCHEDULE.level(time)) for time in range(STEPS)], dtype=x.dtype)
    return gains[t].reshape(-1, 1, 1, 1) * x + MEAN / 2


MODEL = denoise


def zeros():
    return torch.zeros_like(PICTURE)


def exact_bound(v=None):
    """Eq. 5 with the expectation over noise done by hand: E|x0 - k x - c|^2 = (x0 - k alpha x0 - c)^2 + (k sigma)^2."""
    last = SCHEDULE.level(STEPS - 1)
    total = 0.5 * ((last.alpha * PICTURE) ** 2 + last.sigma**2 - 1 - math.log(last.sigma**2)).sum().item()
    for t in range(STEPS):
        level, before = SCHEDULE.level(t), SCHEDULE.level(t - 1)
        k = gain(level)
        error = ((1 - k * level.alpha) * PICTURE - MEAN / 2) ** 2 + (k * level.sigma) ** 2
        if t == 0 and v is None:
            total += 0.5 * (error / level.sigma**2 + math.log(2 * math.pi * level.sigma**2)).sum().item()
        elif t == 0:  # between the posterior's variance of the step from 1 to 0 and sigma^2
            next_level = SCHEDULE.level(1)
            least = posterior(next_level.alpha, next_level.sigma, level.alpha, level.sigma).variance
            variance = least * (level.sigma**2 / least) ** ((1 + v) / 2)
            total += 0.5 * (error / variance + math.log(2 * math.pi * variance)).sum().item()
        else:
            fall = math.exp(before.log_snr) - math.exp(level.log_snr)
            wider = 1.0 if v is None else (level.sigma / before.sigma) ** (1 + v)
            total += 0.5 * (fall * error / wider + math.log(wider) + 1 / wider - 1).sum().item()
    return total


def exact_negative_log_likelihood():
    """-log p(x0) of the reverse chain, which is Gaussian: mean and variance carried from the prior down."""
    mean, variance = 0.0, 1.0
    for t in reversed(range(STEPS)):
        level, before = SCHEDULE.level(t), SCHEDULE.level(t - 1)
        step = posterior(level.alpha, level.sigma, before.alpha, before.sigma)
        slope = step.of_x + step.of_x0 * gain(level)
        mean = slope * mean + step.of_x0 * MEAN / 2
        variance = slope**2 * variance + (step.variance if t else level.sigma**2)
    return 0.5 * ((PICTURE - mean) ** 2 / variance + math.log(2 * math.pi * variance)).sum().item()


def estimates(name, v=None):
    def denoise(x, t):
        return MODEL(x, t) if v is None else (MODEL(x, t), torch.full_like(x, v))

    generator = torch.Generator().manual_seed(0)
    x0 = PICTURE.expand(DRAWS, 1, 2, 2)

    def draw():
        return torch.randn(x0.shape, generator=generator, dtype=torch.float64)

    t = torch.randint(STEPS, (DRAWS,), generator=generator)
    return {
        "trajectory": lambda: bound_trajectory(denoise, SCHEDULE, x0, draw),
        "all_levels": lambda: bound_all_levels(denoise, SCHEDULE, x0, draw),
        "two_samples": lambda: bound_two_samples(denoise, SCHEDULE, x0, t, draw),
        "one_sample": lambda: bound_one_sample(denoise, SCHEDULE, x0, t, draw),
    }[name]()


@pytest.mark.parametrize("v", [None, 0.4])
@pytest.mark.parametrize("name", ["trajectory", "all_levels", "two_samples", "one_sample"])
def test_estimator_agrees_with_the_exact_bound(name, v):
    """The mean of 40,000 estimates lies within 4 standard errors, and the standard error is below 3 % of the bound."""
    values = estimates(name, v)
    wanted = exact_bound(v)
    error = (values.std() / DRAWS**0.5).item()
    assert error < 0.03 * abs(wanted)
    assert abs(values.mean().item() - wanted) < 4 * error


def test_the_bound_bounds_the_likelihood():
    """Jensen: the bound lies above -log p(x0) of the very model it is the bound of."""
    assert exact_bound() > exact_negative_log_likelihood()


@dataclass(frozen=True)
class EvenLogSnr(DiscreteVP):
    """log-SNR in equal parts from 9 to -9."""

    def betas(self):
        alpha_bar = 1.0 / (1.0 + np.exp(np.linspace(-9.0, 9.0, self.num_train_timesteps)))
        return 1.0 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])


def entropy_gap(schedule):
    """Mean bound over N(MEAN, SPREAD^2) data with the exact denoiser, less the data's entropy; nats a value."""
    steps = schedule.num_train_timesteps
    last = schedule.level(steps - 1)
    total = 0.5 * (last.alpha**2 * (MEAN**2 + SPREAD**2) + last.sigma**2 - 1 - math.log(last.sigma**2))
    for t in range(steps):
        level, before = schedule.level(t), schedule.level(t - 1)
        error = SPREAD**2 * level.sigma**2 / (level.alpha**2 * SPREAD**2 + level.sigma**2)  # variance of x0 given x
        if t == 0:
            total += 0.5 * (error / level.sigma**2 + math.log(2 * math.pi * level.sigma**2))
        else:
            total += 0.5 * (math.exp(before.log_snr) - math.exp(level.log_snr)) * error
    return total - 0.5 * math.log(2 * math.pi * math.e * SPREAD**2)


def test_the_bound_closes_as_steps_shrink():
    """With the exact denoiser the bound tends to -log p(x0) as 1 / T: nothing but the discretisation is lost."""
    gaps = [entropy_gap(EvenLogSnr(num_train_timesteps=steps)) for steps in (250, 500, 1000)]
    assert 0 < gaps[2] < 0.05
    assert gaps[0] / gaps[1] == pytest.approx(2.0, abs=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(2.0, abs=0.1)


def test_fewer_random_numbers_mean_less_variance():
    """With the same t, taking the expectation over x_{t-1} in closed form lowers the variance."""
    assert estimates("one_sample").var() < estimates("two_samples").var()


def test_level_term_is_the_closed_form_kl():
    """KL between two Gaussians of one variance, written with torch.distributions."""
    from torch.distributions import Normal, kl_divergence

    x0, x, t = PICTURE, PICTURE + 0.3, torch.tensor([5])
    estimate = denoise(x, t)
    alpha, sigma, before = at_times(SCHEDULE, t, x0)
    step = posterior(alpha, sigma, *before)
    means = [step.of_x * x + step.of_x0 * clean for clean in (x0, estimate)]
    wanted = kl_divergence(*(Normal(mean, step.variance.sqrt()) for mean in means)).sum()
    torch.testing.assert_close(level_term(SCHEDULE, x0, estimate, t), wanted[None], rtol=1e-12, atol=0)


@pytest.mark.parametrize("v", [-0.5, 1.1])
def test_level_term_of_a_learned_variance_is_the_kl_of_two_gaussians(v):
    from torch.distributions import Normal, kl_divergence

    x0, x, t, before = PICTURE, PICTURE + 0.3, torch.tensor([9]), torch.tensor([4])
    estimate = denoise(x, t)
    alpha, sigma, earlier = at_times(SCHEDULE, t, x0, before)
    step = posterior(alpha, sigma, *earlier)
    wide = step.variance * (sigma / earlier[1]) ** (1 + v)
    means = [step.of_x * x + step.of_x0 * clean for clean in (x0, estimate)]
    exact, made = (Normal(mean, variance.sqrt()) for mean, variance in zip(means, (step.variance, wide), strict=True))
    found = level_term(SCHEDULE, x0, estimate, t, torch.full_like(x0, v), before)
    torch.testing.assert_close(found, kl_divergence(exact, made).sum()[None], rtol=1e-12, atol=0)


def test_a_chain_of_one_step_has_the_fixed_variance_whatever_v_is():
    """No step above it gives the lower end of the decoder's range."""
    values = [
        bound_all_levels(
            lambda x, t, v=v: (denoise(x, t), torch.full_like(x, v)), SCHEDULE, PICTURE, zeros, [STEPS - 1]
        )
        for v in (-1.0, 0.4)
    ]
    wanted = bound_all_levels(denoise, SCHEDULE, PICTURE, zeros, [STEPS - 1])
    torch.testing.assert_close(torch.stack(values), wanted.expand(2, -1), rtol=1e-12, atol=0)


def test_the_bound_of_a_shorter_chain_is_that_of_the_law_with_its_levels_alone():
    times = [1, 4, 8, 11]
    kept = SCHEDULE.alphas_cumprod[times]

    @dataclass(frozen=True)
    class Shorter(DiscreteVP):
        def betas(self):
            return 1.0 - kept / np.concatenate([[1.0], kept[:-1]])

    def told(x, t):
        return denoise(x, torch.tensor(times)[t])

    wanted = bound_all_levels(told, Shorter(num_train_timesteps=4), PICTURE, zeros)
    torch.testing.assert_close(bound_all_levels(denoise, SCHEDULE, PICTURE, zeros, times), wanted, rtol=1e-12, atol=0)


def test_prior_term_vanishes_at_zero_terminal_snr():
    schedule = LinearSchedule(zero_terminal_snr=True)
    assert prior_term(schedule, PICTURE).item() == 0.0
    assert prior_term(LinearSchedule(), PICTURE).item() > 0.0


def test_bound_is_finite_at_zero_terminal_snr():
    schedule = LinearSchedule(num_train_timesteps=6, beta_start=0.1, beta_end=0.5, zero_terminal_snr=True)
    for bound in (bound_trajectory, bound_all_levels):
        assert bound(lambda x, t: 0.5 * x, schedule, PICTURE, lambda: torch.zeros_like(PICTURE)).isfinite().all()
