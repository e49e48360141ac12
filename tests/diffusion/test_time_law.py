"""Times of training: each law's probabilities against its formula, and draws that follow them."""

import math

import numpy as np
import pytest
import torch

from latent_diffusion.diffusion.loss import DiffusionLoss
from latent_diffusion.diffusion.prediction import EPSILON
from latent_diffusion.diffusion.time_law import TimeLaw, draw_times
from latent_diffusion.errors import ConfigError
from latent_diffusion.schedules.linear import LinearSchedule

TOTAL = 1000
LOSS = DiffusionLoss(LinearSchedule(), EPSILON, "min_snr")


def density(share, mean, std):
    """Density of sigmoid(mean + std * normal): arXiv:2403.03206, eq. (19)."""
    logit = math.log(share / (1 - share))
    return math.exp(-((logit - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi) * share * (1 - share))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.7), (1.2, 1.5)])
def test_logit_normal_is_the_papers_density(mean, std):
    found = TimeLaw("logit_normal", mean, std).probabilities(TOTAL)
    middle = (np.arange(TOTAL) + 0.5) / TOTAL
    wanted = np.array([density(share, mean, std) for share in middle]) / TOTAL
    np.testing.assert_allclose(found[5:-5], wanted[5:-5], rtol=2e-3, atol=1e-8)
    assert found.sum() == pytest.approx(1.0, abs=1e-12)


def test_importance_keeps_the_expected_loss():
    """Times by weight with one weight for all have the mean of the weighted loss under uniform times."""
    weights = LOSS.weight(torch.arange(TOTAL))
    law = TimeLaw("importance").probabilities(TOTAL, weights)
    losses = np.random.default_rng(0).random(TOTAL)
    uniform = float((weights.numpy() * losses).mean())
    assert float((law * losses).sum() * weights.mean()) == pytest.approx(uniform, rel=1e-12)


def test_a_range_leaves_the_other_times_out():
    law = TimeLaw(low=0.25, high=0.5).probabilities(TOTAL)
    assert set(np.flatnonzero(law)) == set(range(250, 500))
    times = draw_times(np.linspace(0, 1, 5000, endpoint=False), law)
    assert (int(times.min()), int(times.max())) == (250, 499)


@pytest.mark.parametrize("law", [TimeLaw(), TimeLaw("logit_normal", 0.3, 0.8), TimeLaw("importance", high=0.9)])
def test_evenly_spread_shares_meet_every_time_as_often_as_its_probability(law):
    made = law.probabilities(TOTAL, LOSS.weight(torch.arange(TOTAL)))
    count = 200_000
    times = draw_times((np.arange(count) + 0.5) / count, made)
    found = np.bincount(times.numpy(), minlength=TOTAL)
    np.testing.assert_allclose(found, made * count, atol=1.01)


def test_the_last_share_is_a_time_of_the_range():
    assert int(draw_times([1.0 - 1e-17], TimeLaw(high=0.3).probabilities(TOTAL))[0]) == 299


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "lognormal"}, "did you mean 'logit_normal'"),
        ({"name": "uniform", "mean": 1.0}, "no mean and std"),
        ({"name": "logit_normal", "std": 0.0}, "std above 0"),
        ({"low": 0.5, "high": 0.5}, "low < high"),
        ({"high": 1.5}, "low < high"),
    ],
)
def test_wrong_numbers_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        TimeLaw(**settings)


def test_every_law_at_the_ends_of_the_times():
    """Of a law that ends in pure noise: the first and last time have the probability of the formula, in [0, 1]."""
    total = 8
    uniform, normal = TimeLaw().probabilities(total), TimeLaw("logit_normal").probabilities(total)
    assert uniform[0] == uniform[-1] == 1 / total
    tail = 0.5 * math.erfc(
        math.log(total - 1) / math.sqrt(2)
    )  # beyond the logit of 1 - 1 / T, by symmetry before 1 / T
    assert normal[0] == pytest.approx(tail, rel=1e-12) == normal[-1]
    weights = torch.tensor([1e15, 4.0, 3.0, 2.0, 1.0, 0.5, 0.25, 0.0])  # SNR infinite at first, 0 at last
    chosen = TimeLaw("importance").probabilities(total, weights)
    assert chosen[0] == pytest.approx(1.0) and chosen[-1] == 0.0 and chosen.sum() == pytest.approx(1.0)
    assert int(draw_times([1.0 - 1e-16], chosen)) <= 6, "a time of weight 0 is never drawn"
