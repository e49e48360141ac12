"""The equivalent targets mu, x0, epsilon and v (arXiv:2006.11239, eq. 8 to 15; arXiv:2202.00512, appendix D)."""

from itertools import product

import pytest
import torch

from latent_diffusion.diffusion.denoiser import at_times
from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.diffusion.posterior import posterior
from latent_diffusion.diffusion.prediction import EPSILON, FLOW, MEAN, X0, V, check_prediction, prediction_named
from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import find
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

ALL = (EPSILON, V, X0, FLOW, MEAN)
SCHEDULE = ScaledLinearSchedule()
TIMES = torch.tensor([0, 1, 10, 100, 500, 900, 999])


def drawn(dtype):
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, len(TIMES), 4, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    alpha, sigma, before = at_times(SCHEDULE, TIMES, x0)
    return x0, noise, add_noise(x0, noise, alpha, sigma), alpha, sigma, before


def relative(got, wanted):
    return ((got.double() - wanted.double()).abs().max() / wanted.double().abs().max()).item()


@pytest.mark.parametrize(
    "prediction,dtype,bound",
    [(p, torch.float64, 1e-12) for p in ALL]
    + [(V, torch.float32, 2e-6), (X0, torch.float32, 0.0), (EPSILON, torch.float32, 1e-5)],
)
def test_n03_round_trip(prediction, dtype, bound):
    """x0 -> target -> x0: 1e-12 in float64; in float32 2e-6 for v and 1e-5 for epsilon (alpha is 0.068 at t = 999)."""
    x0, noise, x, alpha, sigma, before = drawn(dtype)
    target = prediction.target(x0, noise, alpha, sigma, before)
    assert relative(prediction.x0(target, x, alpha, sigma, before), x0) <= bound
    if dtype == torch.float64:
        assert relative(prediction.output(x0, x, alpha, sigma, before), target) <= bound


def test_n03_half_precision_is_not_good_enough():
    """Why conversions are done in float32: in float16 the round trip of v is off by more than the float32 bound."""
    x0, noise, x, alpha, sigma, _ = drawn(torch.float16)
    error = relative(V.x0(V.target(x0, noise, alpha, sigma), x, alpha, sigma), x0)
    assert 2e-6 < error < 1.5e-2


@pytest.mark.parametrize("source,goal", list(product(ALL, ALL)), ids=lambda p: p.name)
def test_every_target_converts_into_every_other(source, goal):
    """Through x0: source target -> x0 -> goal target, exact to 1e-11 (dividing by of_x0 amplifies rounding)."""
    x0, noise, x, alpha, sigma, before = drawn(torch.float64)
    through = source.x0(source.target(x0, noise, alpha, sigma, before), x, alpha, sigma, before)
    wanted = goal.target(x0, noise, alpha, sigma, before)
    assert relative(goal.output(through, x, alpha, sigma, before), wanted) < 1e-11


def test_mean_from_epsilon_is_the_papers_formula():
    """mu = (x - beta / sqrt(1 - alpha_bar) * noise) / sqrt(1 - beta): arXiv:2006.11239, eq. 11."""
    x0, noise, x, alpha, sigma, before = drawn(torch.float64)
    beta = torch.from_numpy(SCHEDULE.betas())[TIMES].reshape(-1, 1, 1, 1)
    wanted = (x - beta / sigma * noise) / (1 - beta).sqrt()
    torch.testing.assert_close(MEAN.target(x0, noise, alpha, sigma, before), wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("prediction", ALL, ids=lambda p: p.name)
def test_gain_is_the_slope_of_the_output(prediction):
    x0, _, x, alpha, sigma, before = drawn(torch.float64)
    slope = prediction.output(x0 + 1.0, x, alpha, sigma, before) - prediction.output(x0, x, alpha, sigma, before)
    gain = torch.as_tensor(prediction.gain(alpha, sigma, before)).expand_as(slope)
    torch.testing.assert_close(slope.abs(), gain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_n06_epsilon_is_refused_at_zero_terminal_snr(name):
    last = find("latent_diffusion.schedules", name)(zero_terminal_snr=True).level(999)
    assert last.alpha == 0.0
    with pytest.raises(ConfigError, match="v_prediction"):
        check_prediction(EPSILON, last.alpha)
    for other in (V, X0, MEAN):
        check_prediction(other, last.alpha)


def test_v_and_mean_are_finite_at_zero_terminal_snr():
    x0, noise = torch.randn(2, 1, 4, 8, 8)
    for prediction in (V, MEAN):
        target = prediction.target(x0, noise, 0.0, 1.0, (0.1, 0.99**0.5))
        torch.testing.assert_close(prediction.x0(target, noise, 0.0, 1.0, (0.1, 0.99**0.5)), x0)
    assert posterior(0.0, 1.0, 0.1, 0.99**0.5).of_x0 > 0


def test_predictions_have_names():
    assert [prediction_named(p.name) for p in ALL] == list(ALL)
    with pytest.raises(ConfigError, match="did you mean 'epsilon'"):
        prediction_named("epsilom")


HALF = 0.5**0.5
EDGES = {"pure noise, SNR 0": (0.0, 1.0), "SNR 1": (HALF, HALF), "clean, SNR infinite": (1.0, 0.0)}
TARGETS = {  # of x0 = 2 and noise = 3, by hand
    "epsilon": (3.0, 3.0, 3.0),
    "sample": (2.0, 2.0, 2.0),
    "v_prediction": (-2.0, HALF * 3.0 - HALF * 2.0, 3.0),
    "flow_prediction": (1.0, 1.0, 1.0),
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("edge", EDGES)
def test_every_target_at_the_edges_of_the_signal_to_noise_ratio(name, edge):
    alpha, sigma = (torch.tensor(value, dtype=torch.float64) for value in EDGES[edge])
    x0, noise = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (2.0, 3.0))
    target = prediction_named(name).target(x0, noise, alpha, sigma)
    assert float(target) == pytest.approx(TARGETS[name][list(EDGES).index(edge)], rel=1e-12)
    if not (name == "epsilon" and float(alpha) == 0.0):  # refused: it says nothing about x0 there
        x = alpha * x0 + sigma * noise
        assert float(prediction_named(name).x0(target, x, alpha, sigma)) == pytest.approx(2.0, rel=1e-12)


def test_the_posterior_mean_at_the_edges():
    """After pure noise it is that of x0 alone; from SNR 1 on eq. 7 by hand."""
    x0, noise = torch.full((1, 1, 1, 1), 2.0).double(), torch.full((1, 1, 1, 1), 3.0).double()
    after_noise = MEAN.target(x0, noise, *torch.tensor([0.0, 1.0]).double(), (HALF, HALF))
    assert float(after_noise) == pytest.approx(HALF * 2.0, rel=1e-12)
    alpha, sigma = 0.6, 0.8  # from SNR 1: eq. 7 with beta_t = 1 - (0.6 / HALF)^2
    beta = 1.0 - (alpha / HALF) ** 2
    wanted = HALF * beta / sigma**2 * 2.0 + (alpha / HALF) * HALF**2 / sigma**2 * (alpha * 2.0 + sigma * 3.0)
    found = MEAN.target(x0, noise, *torch.tensor([alpha, sigma], dtype=torch.float64), (HALF, HALF))
    assert float(found) == pytest.approx(wanted, rel=1e-12)
