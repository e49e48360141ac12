"""The posterior q(x_s | x_t, x0) against Bayes' rule (arXiv:2006.11239, eq. 6 and 7)."""

import pytest
import torch

from latent_diffusion.diffusion.forward import transition
from latent_diffusion.diffusion.posterior import posterior, posterior_mean
from latent_diffusion.registry import find, names


@pytest.mark.parametrize("gap", [1, 7, 50])
@pytest.mark.parametrize("name", names("latent_diffusion.schedules"))
def test_n02_posterior_is_bayes_rule(name, gap):
    """q(x_s | x_t, x0) is proportional to q(x_t | x_s) q(x_s | x0): precisions add. Both to 1e-10, relative."""
    schedule = find("latent_diffusion.schedules", name)()
    x, x0, worst = 0.83, -0.41, 0.0
    for t in range(gap, schedule.num_train_timesteps):
        s, level = schedule.level(t - gap), schedule.level(t)
        ratio, added = transition(s.alpha, s.sigma, level.alpha, level.sigma)
        precision = ratio**2 / added + 1.0 / s.sigma**2
        mean = (ratio * x / added + s.alpha * x0 / s.sigma**2) / precision
        step = posterior(level.alpha, level.sigma, s.alpha, s.sigma)
        got = posterior_mean(torch.tensor(x, dtype=torch.float64), torch.tensor(x0, dtype=torch.float64), step).item()
        scale = abs(ratio * x / added / precision) + abs(s.alpha * x0 / s.sigma**2 / precision)
        worst = max(worst, abs(step.variance * precision - 1.0), abs(got - mean) / scale)
    assert worst < 1e-10


def test_posterior_equals_the_papers_betas():
    """Coefficients written with beta and alpha_bar as in eq. 7."""
    schedule = find("latent_diffusion.schedules", "linear")()
    beta, bar = schedule.betas(), schedule.alphas_cumprod
    for t in range(1, 1000, 37):
        level, before = schedule.level(t), schedule.level(t - 1)
        step = posterior(level.alpha, level.sigma, before.alpha, before.sigma)
        assert step.of_x0 == pytest.approx(bar[t - 1] ** 0.5 * beta[t] / (1 - bar[t]), rel=1e-10)
        assert step.of_x == pytest.approx((1 - beta[t]) ** 0.5 * (1 - bar[t - 1]) / (1 - bar[t]), rel=1e-10)
        assert step.variance == pytest.approx((1 - bar[t - 1]) / (1 - bar[t]) * beta[t], rel=1e-10)


def test_posterior_of_the_clean_latent_is_x0():
    assert posterior(0.8, 0.6, 1.0, 0.0) == pytest.approx((0.0, 1.0, 0.0), abs=1e-15)


def test_posterior_holds_at_zero_terminal_snr():
    assert posterior(0.0, 1.0, 0.1, 0.99**0.5) == pytest.approx((0.0, 0.1, 0.99), abs=1e-15)
