"""Flows on Gaussian data: velocities, straightness and the bridge between two Gaussians against their closed forms."""

import numpy as np
import pytest
import torch

from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.prediction import EPSILON, FLOW, V
from latent_diffusion.diffusion.spacing import at_times, levels
from latent_diffusion.diffusion.straight import as_flow, far_end, straightness
from latent_diffusion.samplers.euler import Euler
from latent_diffusion.samplers.heun import Heun
from latent_diffusion.schedules.rectified_flow import RectifiedFlow
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

MEAN, SPREAD = 0.7, 0.4  # of the data
START, WIDTH = -1.2, 1.5  # mean and deviation of the pictures that a bridge starts from


def gaussian(x, level):
    """E[x0 | x] where x0 and noise are independent."""
    variance = (level.alpha * SPREAD) ** 2 + level.sigma**2
    return MEAN + level.alpha * SPREAD**2 / variance * (x - level.alpha * MEAN)


def bridged(x, level):
    """The same where x ends at N(START, WIDTH^2) in place of the standard normal."""
    variance = (level.alpha * SPREAD) ** 2 + (level.sigma * WIDTH) ** 2
    middle = level.alpha * MEAN + level.sigma * START
    return MEAN + level.alpha * SPREAD**2 / variance * (x - middle)


def fine(law, steps=1000):
    return [*at_times(law, np.linspace(law.num_train_timesteps - 1, 0, steps).tolist()), law.level(-1)]


@pytest.mark.parametrize("prediction", [EPSILON, V], ids=lambda p: p.name)
def test_a_model_of_noise_or_v_is_a_flow_as_it_stands(prediction):
    """The velocity is what a flow's network would output at z, whatever the network predicts."""
    law, flow = ScaledLinearSchedule(), RectifiedFlow()
    z = torch.linspace(-2, 2, 6, dtype=torch.float64).view(-1, 1, 1, 1)

    def denoise(x, level):
        output = prediction.output(gaussian(x, level), x, level.alpha, level.sigma)
        return prediction.x0(output, x, level.alpha, level.sigma)

    for u in (0.05, 0.5, 0.9):
        level = flow.level_at(2 * np.log((1 - u) / u))
        wanted = FLOW.output(gaussian(z, level), z, level.alpha, level.sigma)
        torch.testing.assert_close(as_flow(denoise, law)(z, u), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("law", [RectifiedFlow(), ScaledLinearSchedule()], ids=["flow", "with signal at the end"])
def test_straightness_of_gaussian_paths_is_the_integral(law):
    """z(u) = (1 - u) m + c S(u), S^2 = (1 - u)^2 s^2 + u^2, so the variance of dz / du is c^2 times that of S'."""
    last = law.level(law.num_train_timesteps - 1)
    most = last.sigma / (last.alpha + last.sigma)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).view(-1, 1, 1, 1)
    c = (x / (last.alpha + last.sigma) - (1 - most) * MEAN) / np.hypot((1 - most) * SPREAD, most)
    u = (np.arange(20_000) + 0.5) / 20_000 * most
    slope = (u - (1 - u) * SPREAD**2) / np.hypot((1 - u) * SPREAD, u)
    expected = c.flatten() ** 2 * float(slope.var())
    torch.testing.assert_close(straightness(gaussian, x, fine(law)), expected, rtol=0.03, atol=1e-12)


@pytest.mark.parametrize("law", [RectifiedFlow(), ScaledLinearSchedule()], ids=["flow", "with signal at the end"])
def test_a_reflowed_gaussian_is_straight_and_one_step_of_it_is_exact(law):
    """Start and end of a Gaussian path are in linear relation: the flow of such pairs has one velocity a path."""
    last = law.level(law.num_train_timesteps - 1)
    slope, shift = 0.31, 0.2  # x0 = shift + slope * start

    def denoise(x, level):
        # x = alpha x0 + sigma far_end(x0, start) is linear in start: solve for it
        of_start = level.alpha * slope + level.sigma * (1 - last.alpha * slope) / last.sigma
        constant = (level.alpha - level.sigma * last.alpha / last.sigma) * shift
        return shift + slope * (x - constant) / of_start

    start = torch.linspace(-2, 2, 5, dtype=torch.float64).view(-1, 1, 1, 1)
    assert straightness(denoise, start, fine(law, 50)).abs().max() < 1e-13
    *_, step = Euler()(denoise, start, [last, law.level(-1)], NoiseSource([0]))
    torch.testing.assert_close(step.x, shift + slope * start, rtol=1e-10, atol=1e-10)
    noise = far_end(step.x, start, last)
    torch.testing.assert_close(last.alpha * step.x + last.sigma * noise, start)


def test_a_bridge_of_two_gaussians_carries_one_into_the_other():
    """In one dimension the flow keeps the order of the points: x -> m + s / w (x - start)."""
    law, x = RectifiedFlow(), torch.linspace(-4, 2, 7, dtype=torch.float64).view(-1, 1, 1, 1)
    wanted = MEAN + SPREAD / WIDTH * (x - START)
    errors = []
    for steps in (20, 40):
        visited = levels(law, "linspace", steps, fractional=True)
        *_, step = Heun()(bridged, x, visited, NoiseSource([0]))
        errors.append(float((step.x - wanted).abs().max()))
    assert errors[1] < 5e-3 and 3.0 < errors[0] / errors[1] < 5.0
