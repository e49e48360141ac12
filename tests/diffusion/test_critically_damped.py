"""Critically damped Langevin diffusion: its law against an ODE, the orders of its samplers, and what they draw."""

import math
from itertools import pairwise

import pytest
import torch

from latent_diffusion.diffusion.critically_damped import END, Damped, carried, kernel
from latent_diffusion.diffusion.damped_steps import EulerMaruyama, Splitting, falling_times
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.errors import ConfigError

DRIFT = torch.tensor([[0.0, 1.0], [-1.0, -2.0]], dtype=torch.float64)
SPREAD, COUNT = 0.04, 5000


def law_by_ode(a, start):
    """Integrate d mean/da = A mean and d cov/da = A cov + cov A' + diag(0, 4) by Runge and Kutta's method."""

    def slope(state):
        matrix, covariance = state
        spread = DRIFT @ covariance + covariance @ DRIFT.T + torch.diag(torch.tensor([0.0, 4.0], dtype=torch.float64))
        return torch.stack([DRIFT @ matrix, spread])

    steps = max(100, int(100 * a))
    state, h = torch.stack([torch.eye(2, dtype=torch.float64), start]), a / steps
    for _ in range(steps):
        k1 = slope(state)
        k2 = slope(state + h / 2 * k1)
        k3 = slope(state + h / 2 * k2)
        k4 = slope(state + h * k3)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return state


@pytest.mark.parametrize("spread", [0.0, SPREAD, 1.0])
@pytest.mark.parametrize("a", [1e-3, 0.05, 0.7, 2.0, END])
def test_the_law_is_that_of_the_equation(a, spread):
    matrix, covariance = law_by_ode(a, torch.diag(torch.tensor([0.0, spread], dtype=torch.float64)))
    law = kernel(torch.tensor(a, dtype=torch.float64), spread)
    found = torch.stack([law.xx, law.xw, law.wx, law.ww]).view(2, 2)
    torch.testing.assert_close(found, matrix, rtol=1e-8, atol=1e-12)
    factor = torch.stack([law.noise_x, torch.zeros_like(law.noise_x), law.noise_wx, law.noise_w]).view(2, 2)
    torch.testing.assert_close(factor @ factor.T, covariance, rtol=1e-7, atol=1e-15)


def test_the_law_of_rest_is_kept():
    """Carried from N(0, I) by the kernel, mean and covariance of 20,000 draws stay within 3 standard errors."""
    count = 20_000
    normal = torch.randn(2, count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = carried(normal[0], kernel(torch.tensor(0.6)), normal[1])
    assert u.mean(0).abs().max() < 3 / count**0.5
    assert (u.var(0) - 1).abs().max() < 3 * (2 / count) ** 0.5
    assert abs(u.prod(1).mean()) < 3 / count**0.5


def law_of_gaussian(time, mean, variance, spread):
    """Return mean (2,) and covariance (2, 2) of u at a time, for data N(mean, variance)."""
    start = torch.diag(torch.tensor([variance, spread], dtype=torch.float64))
    law = kernel(torch.tensor(time, dtype=torch.float64)) if time else None
    turn = torch.eye(2, dtype=torch.float64) if law is None else torch.stack(law[:4]).view(2, 2)
    rest = torch.eye(2, dtype=torch.float64)
    return turn @ torch.tensor([mean, 0.0], dtype=torch.float64), rest + turn @ (start - rest) @ turn.T


def velocity_score(parts, spread):
    """Return the exact score by w of data sum of weight N(mean, variance), value by value."""

    def score(u, time):
        x, w = u.chunk(2, 1)
        logs, scores = [], []
        for weight, mean, variance in parts:
            centre, covariance = law_of_gaussian(time, mean, variance, spread)
            off = torch.stack([x - centre[0], w - centre[1]], -1)
            pulled = off @ torch.linalg.inv(covariance)
            logs.append(math.log(weight) - 0.5 * (pulled * off).sum(-1) - 0.5 * torch.logdet(covariance))
            scores.append(-pulled[..., 1])
        return (torch.stack(logs).softmax(0) * torch.stack(scores)).sum(0)

    return score


def test_the_networks_output_stands_for_the_score():
    """A network that gives the noise's expectation given u has the exact score; on N(0, 1) it gives nothing at all."""
    u = torch.randn(50, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    damped = Damped(SPREAD)
    for time in (0.01, 0.5, 3.0):
        found = damped.score(lambda u, a: torch.zeros_like(u[:, :1]))(u, time)
        _, covariance = law_of_gaussian(time, 0.0, 1.0, SPREAD)
        # the mixed form holds the velocity's marginal N(0, variance_w): its score is -w / variance_w
        torch.testing.assert_close(found, -u[:, 1:] / covariance[1, 1])


def test_the_loss_is_least_at_the_exact_score():
    """The loss's minimum is the conditional expectation: its gradient along any function of u is 0 there."""
    parts, damped = [(1.0, 0.4, 0.3)], Damped(SPREAD)
    draws = torch.randn(3, 200_000, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x0, noise = 0.4 + 0.3**0.5 * draws[0], torch.cat([draws[1], draws[2]], 1)
    a = torch.full((len(x0),), 0.8, dtype=torch.float64)
    exact = velocity_score(parts, SPREAD)

    def network(u, a, share=0.0):
        wanted = -exact(u, 0.8) * kernel(a, SPREAD).noise_w[:, None]
        return wanted - damped.noise(torch.zeros_like(wanted), u, a) + share * u[:, :1]

    least, more, less = (
        damped.losses(lambda u, a, share=share: network(u, a, share), x0, a, noise) for share in (0.0, 0.05, -0.05)
    )
    for other in (more, less):
        assert (other - least).mean() > 2 * (other - least).std() / len(x0) ** 0.5
    assert abs((more - less).mean()) < 4 * (more - less).std() / len(x0) ** 0.5


def moments_drawn(sampler, times, mean, variance, spread):
    """Return mean (2,) and covariance (2, 2) of u at the end of a sampler, exactly, for Gaussian data.

    It starts from the exact law at the first time. All steps are linear: sample 0 has no noise, sample k + 1 the k-th
    of all standard normal numbers alone.
    """
    per_step = 1 if isinstance(sampler, EulerMaruyama) else 4
    numbers = 2 + per_step * (len(times) - 1)
    used = 2

    def draw(shape):
        nonlocal used
        noise = torch.zeros(numbers + 1, *shape, dtype=torch.float64)
        for k in range(shape[0]):
            noise[used + 1, k] = 1.0
            used += 1
        return noise

    centre, covariance = law_of_gaussian(times[0], mean, variance, spread)
    u = centre.repeat(numbers + 1, 1)
    u[1:3] += torch.linalg.cholesky(covariance).T
    *_, u = sampler(velocity_score([(1.0, mean, variance)], spread), u, times, draw)
    assert used == numbers
    answers = u[1:] - u[0]
    return u[0], answers.T @ answers


def errors_of_data(sampler, times, spread):
    """Return the error of the data's mean and of their variance, of N(.7, .25) drawn by a sampler."""
    found = moments_drawn(sampler, times, 0.7, 0.25, spread)
    return [abs(found[0][0].item() - 0.7), abs(found[1][0, 0].item() - 0.25)]


@pytest.mark.parametrize(
    ("sampler", "order"), [(EulerMaruyama(), 1), (Splitting(), 1), (Splitting(2), 2)], ids=["euler", "split", "split2"]
)
def test_orders_by_halving_the_step(sampler, order):
    assert sampler.order == order
    errors = [errors_of_data(sampler, falling_times(steps, 1.5), 0.25) for steps in (50, 100, 200)]
    for first, second in pairwise(errors):
        measured = [math.log2(one / other) for one, other in zip(first, second, strict=True)]
        assert all(abs(one - order) < 0.25 for one in measured), (measured, errors)


@pytest.mark.parametrize("evaluations", [25, 50, 100])
def test_the_midpoint_has_less_than_half_of_eulers_error_at_equal_evaluations(evaluations):
    errors = errors_of_data(Splitting(2), falling_times(evaluations // 2), SPREAD)
    of_euler = errors_of_data(EulerMaruyama(), falling_times(evaluations), SPREAD)
    assert sum(errors) < sum(of_euler) / 2


@pytest.mark.parametrize("sampler", [EulerMaruyama(), Splitting(), Splitting(2)], ids=["euler", "split", "split2"])
def test_a_mixture_is_drawn(sampler):
    """Mean and variance of 5,000 draws of .3 N(-1.5, .3^2) + .7 N(.8, .5^2), within 3 standard errors."""
    parts = [(0.3, -1.5, 0.09), (0.7, 0.8, 0.25)]
    noise = NoiseSource([3])
    start = noise.draw((COUNT, 2)).double()[0]
    *_, u = sampler(velocity_score(parts, SPREAD), start, falling_times(150), lambda s: noise.draw((COUNT, *s))[0])
    mean = sum(p * m for p, m, _ in parts)
    variance = sum(p * (v + m**2) for p, m, v in parts) - mean**2
    fourth = sum(p * ((m - mean) ** 4 + 6 * (m - mean) ** 2 * v + 3 * v**2) for p, m, v in parts)
    x = u[:, 0]
    assert abs(x.mean() - mean) < 3 * (variance / COUNT) ** 0.5
    assert abs(x.var() - variance) < 3 * ((fourth - variance**2) / COUNT) ** 0.5


def test_what_has_no_meaning_is_refused():
    for make in (lambda: Splitting(3), lambda: falling_times(0)):
        with pytest.raises(ConfigError, match="is not an integer from 1"):
            make()
