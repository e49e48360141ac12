"""Consistency functions on Gaussian data, whose paths are known: x moves along (x - alpha m) / S, S^2 = alpha^2 s^2 +
sigma^2, so that f(x, t) = m + s (x - alpha_t m) / S_t."""

import numpy as np
import pytest
import torch

from latent_diffusion.diffusion.consistency import Consistency, guided, pseudo_huber
from latent_diffusion.diffusion.denoiser import at_times
from latent_diffusion.diffusion.prediction import EPSILON, FLOW, V
from latent_diffusion.errors import ConfigError
from latent_diffusion.schedules.rectified_flow import RectifiedFlow
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

LAWS = {
    "epsilon": (ScaledLinearSchedule(), EPSILON),
    "v, no signal at the end": (ScaledLinearSchedule(zero_terminal_snr=True), V),
    "flow": (RectifiedFlow(), FLOW),
}
MEAN, SPREAD = 0.7, 0.4


def moments(schedule, t, x):
    alpha, sigma, _ = at_times(schedule, t, x)
    return alpha, sigma, (alpha**2 * SPREAD**2 + sigma**2).sqrt()


def exact_x0(schedule, x, t):
    alpha, _, deviation = moments(schedule, t, x)
    return MEAN + alpha * SPREAD**2 / deviation**2 * (x - alpha * MEAN)


def end_of_path(schedule, x, t):
    alpha, _, deviation = moments(schedule, t, x)
    return MEAN + SPREAD * (x - alpha * MEAN) / deviation


def grid_solution(function, x, t):
    """Return the end that the teacher's DDIM steps come to from x at times t, by making them."""
    t = t.clone()
    while bool((t >= 0).any()):
        going = (t >= 0).view(-1, 1, 1, 1)
        now = t.clamp(min=function.stride - 1)
        x = torch.where(going, function.back(x, exact_x0(function.schedule, x, now), now), x)
        t = torch.where(t >= 0, t - function.stride, t)
    return x


def as_output(function, f):
    """Return the network whose consistency function is `f`."""

    def network(x, time):
        t = times_of[tuple(time.tolist())]
        skip, out = (c.view(-1, 1, 1, 1) for c in function.scalings(t))
        alpha, sigma, before = at_times(function.schedule, t, x)
        return function.prediction.output((f(x, t) - skip * x) / out, x, alpha, sigma, before)

    grid = torch.from_numpy(function.times())
    times_of = {tuple(function.schedule.network_time(t).float().tolist()): t for t in (grid, grid[1:], grid[:-1])}
    times_of |= {tuple(function.schedule.network_time(t).float().tolist()): t for t in [(grid - 1).clamp(min=0)]}
    return network


@pytest.mark.parametrize("law", LAWS)
def test_the_solution_on_the_grid_has_no_loss_and_another_has(law):
    function = Consistency(*LAWS[law], steps=20)
    t = torch.from_numpy(function.times())[1:]
    noise = torch.randn(len(t), 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha, sigma, _ = at_times(function.schedule, t, noise)
    x = alpha * (MEAN + SPREAD * noise.flip(0)) + sigma * noise
    before = function.back(x, exact_x0(function.schedule, x, t), t)

    def loss(f):
        network = as_output(function, f)
        return pseudo_huber(function(network, x, t) - function(network, before, t - function.stride), 1e-3)

    assert loss(lambda x, t: grid_solution(function, x, t)).abs().max() < 1e-12
    assert loss(lambda x, t: exact_x0(function.schedule, x, t)).mean() > 1e-3


@pytest.mark.parametrize("law", LAWS)
def test_the_grids_solution_approaches_the_end_of_the_path_in_first_order(law):
    errors = []
    for steps in (50, 200):
        function = Consistency(*LAWS[law], steps=steps)
        x = torch.linspace(-2, 2, 5, dtype=torch.float64).view(-1, 1, 1, 1)
        t = torch.full((5,), function.schedule.num_train_timesteps - 1)
        errors.append(float((grid_solution(function, x, t) - end_of_path(function.schedule, x, t)).abs().max()))
    assert errors[1] < 0.03 and 3.0 < errors[0] / errors[1] < 5.0


@pytest.mark.parametrize("law", LAWS)
def test_at_the_clean_time_the_function_is_x_itself_bit_for_bit(law):
    function = Consistency(*LAWS[law])
    x = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(function(lambda x, t: torch.full_like(x, 1e3), x, torch.full((3,), -1)), x)
    skip, out = function.scalings(torch.tensor([-1, 19, 999]))
    assert (skip[0], out[0]) == (1, 0) and (skip[1:] < 1e-5).all() and (1 - out[1:] < 1e-5).all()


def test_the_grid_ends_at_pure_noise_and_starts_one_stride_from_the_clean_time():
    function = Consistency(ScaledLinearSchedule(), EPSILON)
    np.testing.assert_array_equal(function.times()[[0, 1, -1]], [19, 39, 999])
    with pytest.raises(ConfigError, match="48 steps of the teacher do not divide its 1000 times"):
        Consistency(ScaledLinearSchedule(), EPSILON, steps=48)


def test_guidance_and_the_loss_are_the_papers():
    yes, no = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
    torch.testing.assert_close(guided(yes, no, 3.0), no + 3.0 * (yes - no))
    error = torch.tensor([[[[0.0, 3e-3]]], [[[5.0, -5.0]]]], dtype=torch.float64)
    expected = torch.tensor([(np.sqrt(9e-6 + 1e-6) - 1e-3) / 2, np.sqrt(25 + 1e-6) - 1e-3], dtype=torch.float64)
    torch.testing.assert_close(pseudo_huber(error, 1e-3), expected)
