"""Every sampler against the exact answer on Gaussian data, in float64.

For x0 ~ N(m, s^2) the best denoiser, the probability-flow path and the law at every level are known:

    E[x0 | x] = m + alpha s^2 / v (x - alpha m),   v = alpha^2 s^2 + sigma^2,
    path: x_b = alpha_b m + sqrt(v_b / v_a) (x_a - alpha_a m)

(arXiv:2206.00364, appendix B). The karras grid is smooth, and `final="first"` ends where the path is still smooth.
"""

import math
from itertools import pairwise

import pytest
import torch

from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.registry import find, names
from latent_diffusion.samplers.ddim import DDIM
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

SCHEDULE = ScaledLinearSchedule()
STEPS = (20, 40, 80, 160)


class Gaussian:
    """Data N(mean, spread^2), value by value, and its exact denoiser."""

    def __init__(self, mean=0.3, spread=0.6):
        self.mean, self.spread = mean, spread

    def variance(self, level):
        return (level.alpha * self.spread) ** 2 + level.sigma**2

    def denoise(self, x, level):
        return self.mean + level.alpha * self.spread**2 / self.variance(level) * (x - level.alpha * self.mean)

    def follow(self, x, start, end):
        """Carry x along the exact path from level to level."""
        ratio = math.sqrt(self.variance(end) / self.variance(start))
        return end.alpha * self.mean + ratio * (x - start.alpha * self.mean)


class Basis:
    """Noise whose k-th draw is the k-th unit vector: a linear sampler's output then lists the gain of each draw."""

    def __init__(self, size):
        self.size, self.drawn = size, 0

    def draw(self, shape):
        unit = torch.zeros(1, 1, 1, self.size, dtype=torch.float64)
        unit[..., self.drawn] = 1.0
        self.drawn += 1
        return unit


@pytest.fixture(params=names("latent_diffusion.samplers"))
def sampler(request):
    return find("latent_diffusion.samplers", request.param)()


def last(steps):
    *_, step = steps
    return step.x


def slopes(errors):
    return [math.log2(a / b) for a, b in pairwise(errors)]


def draws_noise(sampler):
    noise = Basis(8)
    last(sampler(Gaussian().denoise, torch.ones(1, 1, 1, 8).double(), levels(SCHEDULE, "karras", 4), noise))
    return noise.drawn > 0


def test_n04_order_of_convergence_to_the_exact_path(sampler):
    """Global error falls as steps^-order: slope within 10 % of `order` from 20 steps on (0.9-1.1, 1.8-2.2)."""
    if draws_noise(sampler):
        pytest.skip("follows no path; its law is tested below")
    data = Gaussian()
    errors = []
    for steps in STEPS:
        visited = levels(SCHEDULE, "karras", steps, final="first")
        x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 1, 9)
        end = last(sampler(data.denoise, x, visited, Basis(1)))
        errors.append((end - data.follow(x, visited[0], visited[-1])).norm().item())
    for slope in slopes(errors):
        assert abs(slope - sampler.order) <= 0.1 * sampler.order, slopes(errors)


def test_n04_order_of_convergence_to_the_exact_law(sampler):
    """The variance of what comes out, computed exactly from the gains of all draws, is off by steps^-order."""
    data = Gaussian(mean=0.0)
    errors = []
    for steps in STEPS:
        visited = levels(SCHEDULE, "karras", steps, final="first")
        noise = Basis(steps + 2)
        x = math.sqrt(data.variance(visited[0])) * noise.draw(())
        gains = last(sampler(data.denoise, x, visited, noise))
        errors.append(abs(gains.square().sum().item() - data.variance(visited[-1])))
    for slope in slopes(errors):
        assert abs(slope - sampler.order) <= 0.15 * sampler.order, slopes(errors)


def test_n05_ddim_inversion_error_falls_as_one_over_n():
    """Data of unit variance (as latents are): there and back with n steps misses by less than these, relative."""
    data = Gaussian(0.0, 1.0)
    x0 = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = {}
    for steps in (10, 50, 100, 1000):
        visited = levels(SCHEDULE, "linspace", steps)[:-1]  # ends at time 0, which can be left again
        noisy = last(DDIM()(data.denoise, x0, visited[::-1], NoiseSource([0])))
        back = last(DDIM()(data.denoise, noisy, visited, NoiseSource([0])))
        errors[steps] = ((back - x0).norm() / x0.norm()).item()
    assert errors[10] < 0.27 and errors[50] < 0.059 and errors[100] < 0.030 and errors[1000] < 0.003, errors
    assert errors[100] / errors[1000] == pytest.approx(10.0, rel=0.1)


def test_n08_mean_and_variance_of_20000_draws(sampler):
    """All 1000 levels with the exact denoiser: sample mean and variance within 3 standard errors of the data's."""
    data, count = Gaussian(), 20_000
    noise = NoiseSource([0])
    visited = levels(SCHEDULE, "linspace", 1000, intervals=sampler.intervals)
    start = visited[0]
    x = start.alpha * data.mean + math.sqrt(data.variance(start)) * noise.draw((1, 100, 200)).double()
    values = last(sampler(data.denoise, x, visited, noise))
    assert abs(values.mean().item() - data.mean) < 3 * data.spread / count**0.5
    assert abs(values.var().item() / data.spread**2 - 1.0) < 3 * (2 / count) ** 0.5


def test_ddim_with_eta_one_is_ddpm():
    """arXiv:2010.02502, section 4.1: same draws, same latents."""
    data = Gaussian()
    visited = levels(SCHEDULE, "trailing", 20)
    ends = []
    for one in (DDIM(eta=1.0), find("latent_diffusion.samplers", "ddpm")()):
        noise = NoiseSource([3])
        ends.append(last(one(data.denoise, noise.draw((4, 8, 8)).double(), visited, noise)))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-12)
