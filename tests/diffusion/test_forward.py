"""The forward process (arXiv:2006.11239, eq. 2 and 4)."""

import math

import pytest
import torch

from latent_diffusion.diffusion.forward import add_noise, forward_step, transition
from latent_diffusion.registry import find, names

SCHEDULES = [name for name in names("latent_diffusion.schedules") if name != "rectified_flow"]  # it has no betas


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_n01_forward_chain_reaches_the_closed_form(name, zero):
    """Signal and noise variance carried through T single steps equal alpha and sigma^2 of every level to 1e-12."""
    schedule = find("latent_diffusion.schedules", name)(zero_terminal_snr=zero)
    signal, variance, worst = 1.0, 0.0, 0.0
    for t in range(schedule.num_train_timesteps):
        before, level = schedule.level(t - 1), schedule.level(t)
        ratio, added = transition(before.alpha, before.sigma, level.alpha, level.sigma)
        signal, variance = ratio * signal, ratio**2 * variance + added
        worst = max(worst, abs(signal - level.alpha), abs(variance - level.sigma**2))
    assert worst < 1e-12


@pytest.mark.parametrize("name", SCHEDULES)
def test_one_step_adds_beta(name):
    """q(x_t | x_{t-1}) = N(sqrt(1 - beta) x, beta): the general transition gives back the schedule's own betas."""
    schedule = find("latent_diffusion.schedules", name)()
    for t, beta in enumerate(schedule.betas()):
        before, level = schedule.level(t - 1), schedule.level(t)
        ratio, added = transition(before.alpha, before.sigma, level.alpha, level.sigma)
        assert ratio == pytest.approx(math.sqrt(1 - beta), rel=1e-12)
        assert added == pytest.approx(beta, rel=1e-9, abs=1e-14)


def test_forward_step_and_add_noise_are_their_formulas():
    x, noise = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    assert torch.equal(add_noise(x, noise, 0.8, 0.6), 0.8 * x + 0.6 * noise)
    stepped = forward_step(x, noise, (1.0, 0.0), (0.8, 0.6))  # from the clean latent a step is the marginal
    torch.testing.assert_close(stepped, 0.8 * x + 0.6 * noise, rtol=1e-14, atol=1e-14)
