"""Distribution matching where both laws are Gaussian, so that estimates, KL and its gradients have formulas."""

import math

import numpy as np
import pytest
import torch

from latent_diffusion.diffusion.distribution_matching import matching_gradient, matching_loss
from latent_diffusion.schedules.rectified_flow import RectifiedFlow
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule
from latent_diffusion.training.objectives.plane import PlanePoints

TEACHER, STUDENT = (0.7, 0.4), (-0.3, 1.1)  # mean and deviation


def estimate(x, law, alpha, sigma):
    """The best estimate of x0 at x, of data N(mean, deviation^2)."""
    mean, deviation = law
    return mean + alpha * deviation**2 / ((alpha * deviation) ** 2 + sigma**2) * (x - alpha * mean)


def divergence(student, teacher, level):
    """KL of the noised student from the noised teacher."""
    (m, v), (n, w) = ((level.alpha * a, (level.alpha * b) ** 2 + level.sigma**2) for a, b in (student, teacher))
    return 0.5 * ((v + (m - n) ** 2) / w - 1 - torch.log(torch.as_tensor(v / w)))


def grid():
    """Nodes of z and of the noise, and their weights: means of polynomials of a low degree are exact."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(8))
    weights = weights / math.sqrt(2 * math.pi)
    z, noise = torch.cartesian_prod(nodes, nodes).unbind(1)
    return z.view(-1, 1, 1, 1), noise.view(-1, 1, 1, 1), torch.outer(weights, weights).view(-1, 1, 1, 1)


@pytest.mark.parametrize("schedule", [ScaledLinearSchedule(), RectifiedFlow()], ids=["vp", "flow"])
@pytest.mark.parametrize("t", [20, 250, 500, 979])
def test_the_gradient_is_that_of_kl_at_every_level(schedule, t):
    level, (z, noise, weights) = schedule.level(float(t)), grid()
    mean, deviation = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in STUDENT)
    wanted = torch.autograd.grad(divergence((mean, deviation), TEACHER, level), (mean, deviation))
    x0 = STUDENT[0] + STUDENT[1] * z
    x = level.alpha * x0 + level.sigma * noise
    fake, real = (estimate(x, law, level.alpha, level.sigma) for law in (STUDENT, TEACHER))
    weight = (level.sigma / level.alpha) ** 2 / (x0 - real).abs()
    of_kl = matching_gradient(x0, fake, real) / weight
    found = ((weights * of_kl).sum(), (weights * of_kl * z).sum())
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("t", [20, 500, 979])
def test_without_a_difference_of_the_laws_the_mean_gradient_is_zero_and_with_one_it_is_not(t):
    """The estimate of the fake law is that of a fit to the drawn points, as its network's is, not a formula's."""
    level = ScaledLinearSchedule().level(float(t))

    def slopes(law):
        z, noise, weights = grid()
        x0 = law[0] + law[1] * z
        x = level.alpha * x0 + level.sigma * noise
        centred = x - (weights * x).sum()
        slope = (weights * centred * x0).sum() / (weights * centred**2).sum()
        fake, real = (weights * x0).sum() + slope * centred, estimate(x, TEACHER, level.alpha, level.sigma)
        gradient = matching_gradient(x0, fake, real) * (x0 - real).abs()
        return torch.stack([(weights * gradient).sum(), (weights * gradient * z).sum()])

    assert slopes(TEACHER).abs().max() < 1e-12
    assert slopes(STUDENT).abs().min() > 1e-3


def test_the_loss_has_that_gradient_and_no_other_and_divides_by_nothing_small():
    x0, fake, real = torch.randn(3, 2, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for one in (x0, fake, real):
        one.requires_grad_()
    losses = matching_loss(x0, fake, real)
    losses.sum().backward()
    distance = (x0 - real).abs().mean((1, 2, 3), keepdim=True)
    wanted = ((fake - real) / distance).detach()
    torch.testing.assert_close(x0.grad, wanted / 36)
    torch.testing.assert_close(losses, 0.5 * wanted.square().mean((1, 2, 3)))
    assert fake.grad is None and real.grad is None
    assert matching_loss(real, real, real).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("side", [1, 2])
def test_a_student_on_the_plane_gets_the_mean_of_the_teachers_points(side):
    """The teacher's estimate on the grid of Gaussians and that of the student, one Gaussian, are exact."""
    points, schedule, random = PlanePoints(side=side, spread=0.3), ScaledLinearSchedule(), np.random.default_rng(0)
    draw = torch.Generator().manual_seed(0)
    centres = points.centres()
    mean = torch.tensor([1.5, -1.0], dtype=torch.float64, requires_grad=True)
    log_deviation = torch.tensor([0.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([mean, log_deviation], lr=0.03)
    for _ in range(250):
        level = schedule.level(float(random.integers(20, 980)))
        alpha, sigma = level.alpha, level.sigma
        z, noise = torch.randn(2, 64, 2, generator=draw, dtype=torch.float64)
        x0 = mean + log_deviation.exp() * z
        with torch.no_grad():
            x = alpha * x0 + sigma * noise
            near = -(x[:, None] - alpha * centres).square().sum(2) / (2 * ((alpha * points.spread) ** 2 + sigma**2))
            means = near.softmax(1) @ centres
            real = means + alpha * points.spread**2 / ((alpha * points.spread) ** 2 + sigma**2) * (x - alpha * means)
            fake = estimate(x, (mean, log_deviation.exp()), alpha, sigma)
        optimizer.zero_grad()
        matching_loss(x0, fake, real).mean().backward()
        optimizer.step()
    spread = math.sqrt(points.spread**2 + float(centres[:, 0].square().mean()))
    assert mean.abs().max() < 0.1
    assert (log_deviation.exp() / spread - 1).abs().max() < 0.25
