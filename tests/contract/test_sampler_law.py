"""Every sampler against the exact answer on Gaussian data, in float64.

For x0 ~ N(m, s^2) the best denoiser, the probability-flow path and the law at every level are known:

    E[x0 | x] = m + alpha s^2 / v (x - alpha m),   v = alpha^2 s^2 + sigma^2,
    path: x_b = alpha_b m + sqrt(v_b / v_a) (x_a - alpha_a m)

(arXiv:2206.00364, appendix B). The karras grid is smooth, and `final="first"` ends where the path is still smooth.
"""

import math
from dataclasses import fields
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
FASTER = ("LMS", "PNDM", "SASolver")
"""Their first steps, of low order, weigh so little here that the higher order of the rest shows."""


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


def skip_if_made_for_consistency_models(sampler):
    if sampler.order == 0:
        pytest.skip("wants a denoiser that says the end of the path, tested below, or walks within levels: test_score")


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
    found = slopes(path_errors(sampler))
    for slope in found:
        assert slope >= 0.9 * sampler.order, found
        assert slope <= 1.1 * sampler.order or type(sampler).__name__ in FASTER, found


QUIET = {"ddim": 1, "dpm2_ancestral": 2, "dpmpp_2m_sde": 2, "dpmpp_2s_ancestral": 2, "dpmpp_3m_sde": 2, "dpmpp_sde": 2,
         "euler_ancestral": 1, "tcd": 1}  # fmt: skip


@pytest.mark.parametrize("name", list(QUIET))
def test_noise_free_forms_follow_the_path_in_their_order(name):
    """With eta 0; measured from 80 to 160 steps, where the start no longer shows."""
    sampler = find("latent_diffusion.samplers", name)(eta=0.0)
    assert not draws_noise(sampler)
    found = slopes(path_errors(sampler))[-1]
    assert abs(found - QUIET[name]) <= 0.1 * QUIET[name], found


def test_noise_free_samplers_name_the_same_order():
    assert {name for name in names("latent_diffusion.samplers") if "eta" in fields_of(name)} == set(QUIET)
    for name, order in QUIET.items():
        assert find("latent_diffusion.samplers", name).order in (order, 0)


def path_errors(sampler):
    """Distance from the exact path's end for each number of steps."""
    data = Gaussian()
    errors = []
    for steps in STEPS:
        visited = levels(SCHEDULE, "karras", steps, final="first")
        x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 1, 9)
        end = last(sampler(data.denoise, x, visited, Basis(1)))
        errors.append((end - data.follow(x, visited[0], visited[-1])).norm().item())
    return errors


def fields_of(name):
    return {field.name for field in fields(find("latent_diffusion.samplers", name))}


def test_n04_order_of_convergence_to_the_exact_law(sampler):
    """The variance of what comes out, computed exactly from the gains of all draws, is off by steps^-order."""
    skip_if_made_for_consistency_models(sampler)
    found = slopes(law_errors(sampler))
    for slope in found:
        assert slope >= 0.85 * sampler.order, found
        assert slope <= 1.15 * sampler.order or type(sampler).__name__ in FASTER, found


def law_errors(sampler):
    """Error of the variance of what comes out for each number of steps."""
    data = Gaussian(mean=0.0)
    errors = []
    for steps in STEPS:
        visited = levels(SCHEDULE, "karras", steps, final="first")
        noise = Basis(2 * steps + 2)
        x = math.sqrt(data.variance(visited[0])) * noise.draw(())
        gains = last(sampler(data.denoise, x, visited, noise))
        errors.append(abs(gains.square().sum().item() - data.variance(visited[-1])))
    return errors


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
    skip_if_made_for_consistency_models(sampler)
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


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_lcm_has_the_exact_law_with_a_consistency_function(steps):
    """arXiv:2303.01469, theorem 1: where f says the end of the path, every number of steps gives the data's law."""
    data = Gaussian(mean=0.0)

    def ends_at(x, level):
        return data.spread / math.sqrt(data.variance(level)) * x

    visited = levels(SCHEDULE, "trailing", steps)
    noise = Basis(steps + 1)
    x = math.sqrt(data.variance(visited[0])) * noise.draw(())
    gains = last(find("latent_diffusion.samplers", "lcm")()(ends_at, x, visited, noise))
    assert gains.square().sum().item() == pytest.approx(data.spread**2, rel=1e-12)


def test_tcd_goes_down_to_time_0_with_eta_one():
    """arXiv:2402.19159, section 4.3: then nearly all of x is fresh, as in a consistency model's sampling."""
    data, noise = Gaussian(mean=0.0), Basis(8)
    visited = levels(SCHEDULE, "trailing", 4, final="first")
    gains = last(find("latent_diffusion.samplers", "tcd")(eta=1.0)(data.denoise, noise.draw(()), visited[:2], noise))
    first, after = SCHEDULE.level(0), visited[1]
    assert gains.flatten()[1] == pytest.approx(math.sqrt(1 - (after.alpha / first.alpha) ** 2), rel=1e-9)


def test_euler_ancestral_is_ddpm_and_euler_is_ddim():
    """Two derivations of one method: same draws, same latents."""
    data = Gaussian()
    visited = levels(SCHEDULE, "trailing", 20)
    for one, other in (("euler_ancestral", "ddpm"), ("euler", "ddim")):
        ends = []
        for name in (one, other):
            noise = NoiseSource([3])
            x = noise.draw((4, 8, 8)).double()
            ends.append(last(find("latent_diffusion.samplers", name)()(data.denoise, x, visited, noise)))
        torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-12)
