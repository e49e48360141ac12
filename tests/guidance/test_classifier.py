"""Classifier guidance on Gaussians, where the guided estimate is known exactly, and autoguidance's formula."""

import pytest
import torch
from mixing import LEVELS, SCHEDULE, denoiser, drawn, x0_of
from torch import nn

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.prediction import EPSILON, X0
from latent_diffusion.guidance.autoguidance import Autoguidance
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.guidance.classifier import ClassifierGuidance

SPREAD, SEEN, NOISE = 1.3, 0.7, 0.5  # x0 ~ N(0, SPREAD^2); the class is that x0 + N(0, NOISE^2) was SEEN


class Posterior:
    """The exact network of Gaussian data, told nothing: E[x0 | x]."""

    def project(self, cond):
        return None

    def __call__(self, x, t, projected):
        level = SCHEDULE.level(float(t[0]))
        return x * level.alpha * SPREAD**2 / (level.alpha**2 * SPREAD**2 + level.sigma**2)


def log_prob(x, t):
    """log p(SEEN | x), value by value, summed over an image: the exact noise-aware classifier."""
    level = SCHEDULE.level(float(t[0]))
    total = level.alpha**2 * SPREAD**2 + level.sigma**2
    mean, spread = x * level.alpha * SPREAD**2 / total, SPREAD**2 * level.sigma**2 / total + NOISE**2
    return (-0.5 * (SEEN - mean) ** 2 / spread).sum((1, 2, 3))


@pytest.mark.parametrize("level", LEVELS[:-1], ids=lambda level: f"{level.t:g}")
def test_scale_one_is_the_exact_estimate_of_the_class(level):
    x, cond = drawn()[0], Conditioning(torch.zeros(2, 1, 5))
    with torch.no_grad():
        model = Denoiser(Posterior(), SCHEDULE, X0)
        got = ClassifierGuidance(1.0, log_prob).bind(model, cond, cond)(x, level)
    precision = 1 / SPREAD**2 + level.alpha**2 / level.sigma**2 + 1 / NOISE**2
    wanted = (x * level.alpha / level.sigma**2 + SEEN / NOISE**2) / precision
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


MEANS, SHARE = (-0.8, 1.1), 0.4  # two classes, N(mean, SPREAD^2) each, value by value; SHARE of the first


class TwoClasses:
    """The exact network of the mixture of both classes, told nothing: E[x0 | x], value by value."""

    def project(self, cond):
        return None

    def __call__(self, x, t, projected):
        level = SCHEDULE.level(float(t[0]))
        first = of_classes(x, level)[0].exp()
        return first * estimate(x, level, MEANS[0]) + (1 - first) * estimate(x, level, MEANS[1])


def estimate(x, level, mean):
    """E[x0 | x, class] of the class with this mean."""
    total = level.alpha**2 * SPREAD**2 + level.sigma**2
    return mean + level.alpha * SPREAD**2 / total * (x - level.alpha * mean)


def of_classes(x, level):
    """log p(class | x) of both classes, value by value, (2, ...)."""
    total = level.alpha**2 * SPREAD**2 + level.sigma**2
    prior = torch.tensor([SHARE, 1 - SHARE], dtype=x.dtype).log()
    off = torch.stack([-0.5 * (x - level.alpha * mean) ** 2 / total for mean in MEANS])
    return (off + prior.reshape(2, *[1] * x.dim())).log_softmax(0)


@pytest.mark.parametrize("wanted", [0, 1])
@pytest.mark.parametrize("level", LEVELS[:-1], ids=lambda level: f"{level.t:g}")
def test_of_two_gaussians_scale_one_draws_the_wanted_one(level, wanted):
    """The unguided estimate is that of the mixture; guided by the exact classifier it is that of one class."""
    x, cond = drawn()[0].double(), Conditioning(torch.zeros(2, 1, 5))
    model = Denoiser(TwoClasses(), SCHEDULE, X0, torch.float64)

    def towards(x, t):
        return of_classes(x, SCHEDULE.level(float(t[0])))[wanted].sum((1, 2, 3))

    with torch.no_grad():
        got = ClassifierGuidance(1.0, towards).bind(model, cond, cond)(x, level)
    torch.testing.assert_close(got, estimate(x, level, MEANS[wanted]), rtol=1e-9, atol=1e-9)


class Classifier(nn.Module):
    """A tiny noise-aware classifier of four classes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(5, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 3, padding=1))

    def forward(self, x, t):
        time = (t / 1000)[:, None, None, None].expand(-1, 1, *x.shape[-2:])
        return self.body(torch.cat([x, time], dim=1)).mean((2, 3))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_network_raises_the_probability_of_its_class(mode):
    torch.manual_seed(0)
    network, labels = Classifier(), torch.tensor([1, 3])
    x, prompt, negative, _ = drawn()

    def towards(x, t):
        return network(x, t).log_softmax(-1).gather(1, labels[:, None]).squeeze(1)

    level = LEVELS[2]
    guidance = CFG(3.0) + ClassifierGuidance(40.0, towards)
    with mode():
        plain = CFG(3.0).bind(denoiser(EPSILON), prompt, negative)(x, level)
        guided = guidance.bind(denoiser(EPSILON), prompt, negative)(x, level)
        t = torch.zeros(2)
        assert (towards(guided, t) > towards(plain, t)).all()
    assert not any(p.grad is not None for p in network.parameters())


def test_a_level_without_signal_is_left_alone():
    from latent_diffusion.schedules.rectified_flow import RectifiedFlow

    x, cond = drawn()[0], Conditioning(torch.zeros(2, 1, 5))
    schedule = RectifiedFlow()
    last = schedule.level(schedule.num_train_timesteps - 1)
    model = Denoiser(denoiser().network, schedule, X0)
    guided = ClassifierGuidance(1.0, log_prob).bind(model, cond, cond)(x, last)
    assert guided.isfinite().all() and (last.alpha > 0 or torch.equal(guided, model.bind(cond)(x, last)))


def test_autoguidance_is_the_papers_and_adds_to_cfg():
    x, prompt, negative, _ = drawn()
    model, weak = denoiser(), denoiser(shift=2)
    good, bad, away = x0_of(model, x, prompt), x0_of(weak, x, prompt), x0_of(model, x, negative)
    alone = Autoguidance(2.5, weak).bind(model, prompt, negative)(x, LEVELS[2])
    torch.testing.assert_close(alone, bad + 2.5 * (good - bad), rtol=1e-5, atol=1e-5)
    both = (Autoguidance(2.5, weak) + CFG(3.0)).bind(model, prompt, negative)(x, LEVELS[2])
    torch.testing.assert_close(both, away + 3.0 * (good - away) + 1.5 * (good - bad), rtol=1e-5, atol=1e-4)


def test_autoguidance_by_oneself_is_unguided():
    x, prompt, negative, _ = drawn()
    model = denoiser()
    got = Autoguidance(2.5, model).bind(model, prompt, negative)(x, LEVELS[2])
    torch.testing.assert_close(got, x0_of(model, x, prompt), rtol=0, atol=0)
