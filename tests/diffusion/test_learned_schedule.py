"""The learned schedule, where the error of the denoiser is known: the bound stays, its estimate varies less."""

import math

import pytest
import torch

from latent_diffusion.diffusion.denoiser import at_times
from latent_diffusion.diffusion.learned_schedule import (
    diffusion_term,
    ends,
    mean_square,
    noise_error,
    own_schedule,
    table,
    times_at,
)
from latent_diffusion.diffusion.spacing import at_times as levels_at
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.monotone import MonotoneNetwork
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

LAW = ScaledLinearSchedule()
LOW, HIGH = ends(LAW)
SPREAD = 0.3
MEANS = torch.tensor([-1.2, 0.1, 1.4], dtype=torch.float64).view(1, 3, 1, 1, 1) * torch.ones(1, 1, 4, 2, 2)


def network(**how):
    return MonotoneNetwork(LOW, HIGH, **how).double()


def gaussian_error(gamma):
    """E|noise - noise(x)|^2 for each number of N(0, SPREAD^2) data with the exact denoiser."""
    return SPREAD**2 / (SPREAD**2 + gamma.exp())


def mixture(x, t):
    """E[x0 | x] for data that are one of three pictures and N(0, SPREAD^2) beside."""
    alpha, sigma, _ = (value if isinstance(value, tuple) else value[:, None] for value in at_times(LAW, t, x))
    variance = (alpha * SPREAD) ** 2 + sigma**2
    away = x[:, None] - alpha * MEANS
    share = (-0.5 * away.square() / variance).flatten(2).sum(2).softmax(1).view(-1, 3, 1, 1, 1)
    return (share * (MEANS + alpha * SPREAD**2 / variance * away)).sum(1)


def errors(gamma, seed):
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(3, (len(gamma),), generator=generator)
    noises = torch.randn(2, len(gamma), 4, 2, 2, generator=generator, dtype=torch.float64)
    return noise_error(mixture, LAW, MEANS[0, which] + SPREAD * noises[0], noises[1], gamma)


def evenly(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.arange(count) + torch.rand(count, generator=generator, dtype=torch.float64)) / count


def test_the_network_rises_between_the_ends_and_gives_its_slope():
    rising, u = network(), torch.linspace(0, 1, 33, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        for weight in rising.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)).double())
    gamma, slope = rising(u)
    assert (gamma.diff() > 0).all() and (slope > 0).all()
    torch.testing.assert_close(gamma[[0, -1]], torch.tensor([LOW, HIGH], dtype=torch.float64), rtol=1e-12, atol=1e-12)
    (wanted,) = torch.autograd.grad(gamma.sum(), u)
    torch.testing.assert_close(slope, wanted, rtol=1e-9, atol=1e-9)


def test_the_gradient_is_that_of_the_mean_square_though_none_passes_the_denoiser():
    """Against differences of M, written out with the error as a function of the schedule."""
    rising, u = network(width=4), (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000

    def squares():
        gamma, slope = rising(u)
        return diffusion_term(gaussian_error(gamma), slope).square().mean()

    mean_square(rising, u, gaussian_error).mean().backward()
    for weight in (rising.height, rising.shift, rising.sharpness):
        assert weight.grad is not None
        found, step = weight.grad[1].item(), 1e-4
        with torch.no_grad():
            values = []
            for way in (step, -step):
                weight[1] += way
                values.append(squares().item())
                weight[1] -= way
        assert found == pytest.approx((values[0] - values[1]) / (2 * step), rel=2e-3)


def test_on_gaussian_data_every_schedule_gives_the_integral():
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    wanted = 0.5 * (HIGH - LOW - math.log((SPREAD**2 + math.exp(HIGH)) / (SPREAD**2 + math.exp(LOW))))
    for rising in (own_schedule(LAW), network()):
        gamma, slope = rising(u)
        assert diffusion_term(gaussian_error(gamma), slope).mean().item() == pytest.approx(wanted, rel=1e-3)


def test_the_variance_halves_and_the_expectation_stays():
    """A mixture with the exact denoiser: trained for 60 updates, beside uniform times of the law itself."""
    rising = network()
    optimizer = torch.optim.Adam(rising.parameters(), 0.05)
    for update in range(60):
        optimizer.zero_grad()
        mean_square(rising, evenly(64, update), lambda gamma, k=update: errors(gamma, k)).mean().backward()
        optimizer.step()
    u, found = torch.rand(6000, generator=torch.Generator().manual_seed(5), dtype=torch.float64), []
    for schedule in (own_schedule(LAW), rising):
        with torch.no_grad():
            gamma, slope = schedule(u)
            found.append(diffusion_term(errors(gamma, 9), slope))
    (own, own_variance), (learned, variance) = ((each.mean(), each.var()) for each in found)
    assert (own - learned).abs() < 4 * ((own_variance + variance) / len(u)).sqrt()
    assert variance < 0.5 * own_variance


def test_the_table_is_a_spacing():
    times = table(network(), LAW, 15)
    assert len(levels_at(LAW, times)) == 15 and times[0] == LAW.num_train_timesteps - 1
    gamma = -torch.tensor([LAW.level(t).log_snr for t in times], dtype=torch.float64)
    torch.testing.assert_close(
        gamma, network()(torch.arange(15, 0, -1, dtype=torch.float64) / 15)[0], rtol=0, atol=1e-9
    )
    assert times == pytest.approx(times_at(LAW, gamma).tolist(), abs=1e-9)


def test_an_end_without_signal_is_refused():
    with pytest.raises(ConfigError, match="ends on pure noise"):
        ends(ScaledLinearSchedule(zero_terminal_snr=True))
