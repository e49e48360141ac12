"""Densities by the probability-flow ODE, on data whose density is known: Gaussians and mixtures of them."""

import math

import pytest
import torch

from latent_diffusion.diffusion.bound import bound_all_levels, log_normal
from latent_diffusion.diffusion.likelihood import (
    bits_per_dimension,
    exact_divergence,
    hutchinson,
    log_density,
    negative_log_likelihood,
    path_to_noise,
)
from latent_diffusion.schedules.cosine import CosineSchedule
from latent_diffusion.schedules.rectified_flow import RectifiedFlow
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

LAWS = {
    "cosine": CosineSchedule(),
    "zero_terminal": ScaledLinearSchedule(zero_terminal_snr=True),
    "flow": RectifiedFlow(),
}
SHAPE = (1, 2, 2)
MEANS = torch.tensor([[0.9, -0.4, 0.1, 1.2], [-1.0, 0.3, -0.8, 0.2], [0.0, 1.5, 0.7, -1.1]], dtype=torch.float64)
SPREADS = torch.tensor([0.5, 0.8, 0.3], dtype=torch.float64)
SHARES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def parts(x, level, count):
    """Log of share times density of each of the first `count` Gaussians at x, and each one's own E[x0 | x]."""
    flat = x.flatten(1)[:, None]  # (B, 1, 4)
    mean, spread = level.alpha * MEANS[:count], SPREADS[:count, None]
    variance = (level.alpha * spread) ** 2 + level.sigma**2
    log = torch.log(SHARES[:count] / SHARES[:count].sum())
    log = log - 0.5 * ((flat - mean) ** 2 / variance + torch.log(2 * math.pi * variance)).sum(2)
    return log, MEANS[:count] + level.alpha * spread**2 / variance * (flat - mean)


def exact(count):
    """The denoiser of the mixture, and its log-density at a level."""

    def denoise(x, level):
        log, estimates = parts(x, level, count)
        return (log.softmax(1)[..., None] * estimates).sum(1).reshape(x.shape)

    return denoise, lambda x, level: parts(x, level, count)[0].logsumexp(1)


def draws(count, size=64):
    generator = torch.Generator().manual_seed(0)
    which = torch.multinomial(SHARES[:count], size, True, generator=generator)
    noise = torch.randn(size, 4, generator=generator, dtype=torch.float64)
    return (MEANS[which] + SPREADS[which, None] * noise).reshape(size, *SHAPE), noise.reshape(size, *SHAPE).flip(0)


@pytest.mark.parametrize("count", [1, 3], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("law", LAWS)
def test_the_density_is_that_of_the_data(law, count):
    """Within 1e-3 bits a dimension, in the mean and at the worst of 64 draws."""
    denoise, density = exact(count)
    levels = path_to_noise(LAWS[law], 300)
    x0, noise = draws(count)
    x = levels[0].alpha * x0 + levels[0].sigma * noise
    error = bits_per_dimension(log_density(denoise, levels, x, exact_divergence) - density(x, levels[0]), x)
    assert error.abs().max() < 1e-3


def test_a_law_that_ends_before_pure_noise_gives_the_density_of_what_is_drawn():
    """For one Gaussian the ODE is linear: log p(x) = log N(end; 0, I) + 4 log(last spread / first spread)."""
    denoise, _ = exact(1)
    levels = path_to_noise(ScaledLinearSchedule(), 200)
    x, _ = draws(1)
    means, spreads = zip(
        *((lv.alpha * MEANS[0].reshape(SHAPE), math.hypot(lv.alpha * SPREADS[0], lv.sigma)) for lv in levels)
    )
    end = means[-1] + spreads[-1] / spreads[0] * (x - means[0])
    wanted = log_normal(end, torch.zeros_like(end), 1.0) + 4 * math.log(spreads[-1] / spreads[0])
    error = bits_per_dimension(log_density(denoise, levels, x, exact_divergence) - wanted, x)
    assert error.abs().max() < 1e-3


def test_the_error_falls_with_the_square_of_the_step():
    denoise, density = exact(3)
    x, _ = draws(3)
    errors = []
    for steps in (50, 100, 200):
        levels = path_to_noise(LAWS["cosine"], steps)
        found = log_density(denoise, levels, x, exact_divergence)
        errors.append((found - density(x, levels[0])).abs().mean().item())
    assert 3.0 < errors[0] / errors[1] < 6.0 and 3.0 < errors[1] / errors[2] < 6.0


def test_probes_estimate_the_exact_divergence():
    """Every probe of +1 and -1 for four numbers, averaged, is exact; a random subset is unbiased."""
    denoise, _ = exact(3)
    levels = path_to_noise(LAWS["cosine"], 20)
    x, _ = draws(3, 8)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4).reshape(16, 1, *SHAPE)
    value, wanted = exact_divergence(lambda y: denoise(y, levels[3]), x)
    found_value, found = hutchinson([sign.expand_as(x) for sign in signs])(lambda y: denoise(y, levels[3]), x)
    assert torch.equal(value, found_value)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_the_ode_is_tighter_than_the_bound():
    """-log p <= the ODE's estimate <= the chain's bound, in the mean over 2,000 draws."""
    denoise, density = exact(3)
    schedule = ScaledLinearSchedule(num_train_timesteps=50, beta_start=0.002, beta_end=0.3)
    levels = path_to_noise(schedule, 49)
    x0, noise = draws(3, 2000)
    generator = torch.Generator().manual_seed(1)
    ode = negative_log_likelihood(denoise, levels, x0, noise, exact_divergence)
    chain = bound_all_levels(
        lambda x, t: denoise(x, schedule.level(int(t[0]))),
        schedule,
        x0,
        lambda: torch.randn(x0.shape, generator=generator, dtype=torch.float64),
    )
    truth = -density(x0, schedule.level(-1))
    slack = 3 * (ode - truth).std().item() / 2000**0.5
    assert (ode - truth).mean() > -slack
    assert (chain - ode).mean() > 3 * (chain - ode).std() / 2000**0.5


def test_no_gradient_is_left_behind():
    denoise, _ = exact(1)
    x, _ = draws(1, 2)
    with torch.inference_mode():
        found = log_density(denoise, path_to_noise(LAWS["cosine"], 5), x, hutchinson([torch.ones_like(x)]))
    assert not found.requires_grad


def test_what_a_batch_costs():
    """64 latents, 5 steps: 2 evaluations a step and one for the picture, all in one batch; 1 backward pass for each."""
    sizes, passes = [], []

    def denoise(x, level):
        sizes.append(len(x))
        estimate = 0.5 * x
        if estimate.requires_grad:
            estimate.register_hook(lambda gradient: passes.append(len(gradient)))
        return estimate

    x0 = torch.ones(64, *SHAPE)
    levels = path_to_noise(LAWS["cosine"], 5)
    negative_log_likelihood(denoise, levels, x0, x0, hutchinson([x0]))
    assert sizes == [64] * 11 and passes == [64] * 10
