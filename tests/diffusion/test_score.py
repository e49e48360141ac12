"""The score: the gradient of the log-density, the same from every prediction, and followed by Langevin's steps."""

import math

import pytest
import torch

from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.diffusion.level import Level
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.prediction import EPSILON, FLOW, MEAN, X0, V
from latent_diffusion.diffusion.score import langevin_step, score, score_of_output, tweedie
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.errors import ConfigError
from latent_diffusion.samplers.ddpm import DDPM
from latent_diffusion.samplers.langevin import Langevin
from latent_diffusion.samplers.predictor_corrector import PredictorCorrector
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

SCHEDULE = ScaledLinearSchedule()
COUNT = 5000


class Mixture:
    """Data .3 N(-1.5, .3^2) + .7 N(.8, .5^2), value by value: density and best estimate of every level are known."""

    weights, means, spreads = torch.tensor([[0.3, 0.7], [-1.5, 0.8], [0.3, 0.5]], dtype=torch.float64)
    mean = float((weights * means).sum())
    variance = float((weights * (spreads**2 + means**2)).sum()) - mean**2
    fourth = sum(
        w * ((m - c) ** 4 + 6 * (m - c) ** 2 * s**2 + 3 * s**4)
        for w, m, s, c in zip(*(v.tolist() for v in (weights, means, spreads)), [mean] * 2, strict=True)
    )

    def log_parts(self, x, level):
        """Return log(weight x density) of each part, (..., 2)."""
        spread = (level.alpha**2 * self.spreads**2 + level.sigma**2).sqrt()
        off = (x[..., None].double() - level.alpha * self.means) / spread
        return self.weights.log() - spread.log() - 0.5 * off**2 - 0.5 * math.log(2 * math.pi)

    def log_density(self, x, level):
        return self.log_parts(x, level).logsumexp(-1)

    def denoise(self, x, level):
        parts = self.log_parts(x, level).softmax(-1)
        variance = level.alpha**2 * self.spreads**2 + level.sigma**2
        pull = level.alpha * self.spreads**2 / variance
        return (parts * (self.means + pull * (x[..., None] - level.alpha * self.means))).sum(-1).to(x)

    def draw(self, level, seed=0):
        """Return 5,000 draws of the law at a level, (1, 1, 50, 100)."""
        random = torch.Generator().manual_seed(seed)
        part = (torch.rand(1, 1, 50, 100, generator=random) < self.weights[0]).logical_not().long()
        x0 = self.means[part] + self.spreads[part] * torch.randn(part.shape, generator=random, dtype=torch.float64)
        return level.alpha * x0 + level.sigma * torch.randn(part.shape, generator=random, dtype=torch.float64)

    def check_moments(self, x, level):
        """Compare mean and variance with those of the law at a level: within 3 standard errors of 5,000 draws."""
        variance = level.alpha**2 * self.variance + level.sigma**2
        fourth = level.alpha**4 * self.fourth + 6 * level.alpha**2 * self.variance * level.sigma**2 + 3 * level.sigma**4
        assert abs(x.mean().item() - level.alpha * self.mean) < 3 * (variance / COUNT) ** 0.5
        assert abs(x.var().item() - variance) < 3 * ((fourth - variance**2) / COUNT) ** 0.5


CLEAN = Level(0, -1.0, 1.0, 0.0)


def test_score_is_the_gradient_of_log_density():
    """Of a mixture, by autograd; and Tweedie's formula leads from the gradient to the best estimate."""
    data, level = Mixture(), SCHEDULE.level(400)
    x = torch.linspace(-3, 3, 24, dtype=torch.float64).reshape(2, 3, 2, 2).requires_grad_()
    (exact,) = torch.autograd.grad(data.log_density(x, level).sum(), x)
    x = x.detach()
    x0 = data.denoise(x, level)
    torch.testing.assert_close(score(x, x0, level.alpha, level.sigma), exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tweedie(x, exact, level.alpha, level.sigma), x0, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prediction", [EPSILON, V, X0, FLOW, MEAN], ids=lambda prediction: prediction.name)
def test_every_prediction_is_the_same_score(prediction):
    level, before = SCHEDULE.level(400), SCHEDULE.level(399)
    x0, noise = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    x = add_noise(x0, noise, level.alpha, level.sigma)
    numbers = level.alpha, level.sigma, (before.alpha, before.sigma)
    output = prediction.target(x0, noise, *numbers)
    found = score_of_output(prediction, output, x, *numbers)
    torch.testing.assert_close(found, -noise / level.sigma, rtol=1e-9, atol=1e-9)


def test_langevin_keeps_a_mixture():
    """200 steps within a level from draws of its law: mean and variance stay within 3 standard errors."""
    data, level, noise = Mixture(), SCHEDULE.level(400), NoiseSource([5])
    x = data.draw(level)
    data.check_moments(x, level)
    for _ in range(200):
        x = langevin_step(x, data.denoise(x, level), level, 0.1, noise.draw)
    data.check_moments(x, level)


def test_langevin_s_stationary_variance_is_the_closed_form():
    """On Gaussian data of variance v a step is linear: the variance tends to v / (1 - step / (2 v))."""
    level, snr, spread = SCHEDULE.level(500), 0.6, 0.7
    v = (level.alpha * spread) ** 2 + level.sigma**2
    step = (snr * level.sigma) ** 2
    gain = langevin_step(
        torch.ones(1, 1, 1, 1, dtype=torch.float64),
        torch.full((1, 1, 1, 1), level.alpha * spread**2 / v, dtype=torch.float64),
        level, snr, lambda shape: torch.zeros(1, *shape, dtype=torch.float64),
    ).item()  # fmt: skip
    assert gain == pytest.approx(1 - step / v, rel=1e-12)
    assert 2 * step / (1 - gain**2) == pytest.approx(v / (1 - step / (2 * v)), rel=1e-12)


@pytest.mark.parametrize("sampler", [Langevin(4, 0.3), PredictorCorrector()], ids=["langevin", "predictor_corrector"])
def test_a_mixture_is_drawn(sampler):
    """From noise, over 400 levels: mean and variance of 5,000 draws within 3 standard errors of the data's."""
    data, noise = Mixture(), NoiseSource([3])
    visited = levels(SCHEDULE, "linspace", 400, intervals=sampler.intervals)
    *_, last = sampler(data.denoise, noise.draw((1, 50, 100)).double(), visited, noise)
    data.check_moments(last.x, CLEAN)


def test_no_corrections_is_the_predictor():
    data, visited = Mixture(), levels(SCHEDULE, "trailing", 10)
    ends = []
    for sampler in (DDPM(), PredictorCorrector(corrections=0)):
        noise = NoiseSource([1, 2])
        ends.append([step.x for step in sampler(data.denoise, noise.draw((4, 8, 8)), visited, noise)])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_corrections_repair_a_coarse_predictor():
    """Where 12 ancestral steps miss the variance of a mixture, corrections come nearer; so would more steps."""
    data, off = Mixture(), {}
    for corrections in (0, 8):
        noise, visited = NoiseSource([7]), levels(SCHEDULE, "trailing", 12)
        sampler = PredictorCorrector(corrections, 0.3)
        *_, last = sampler(data.denoise, noise.draw((1, 50, 100)).double(), visited, noise)
        off[corrections] = abs(last.x.var().item() - data.variance)
    assert off[8] < 0.6 * off[0], off


@pytest.mark.parametrize(
    "make",
    [
        lambda: Langevin(0),
        lambda: Langevin(snr=1.5),
        lambda: PredictorCorrector(-1),
        lambda: PredictorCorrector(snr=-1),
    ],
)
def test_impossible_figures_are_refused(make):
    with pytest.raises(ConfigError, match=r"langevin|predictor_corrector"):
        make()
