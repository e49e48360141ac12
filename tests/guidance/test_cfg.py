"""Classifier-free guidance (arXiv:2207.12598, eq. 6) and its rescaling (arXiv:2305.08891, eq. 15 and 16)."""

import pytest
import torch

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.prediction import EPSILON, V
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

SCHEDULE = ScaledLinearSchedule()
LEVEL = SCHEDULE.level(400)


class Mixing:
    def __init__(self):
        self.calls = 0

    def project(self, cond):
        return cond.context.mean((1, 2))[:, None, None, None]

    def __call__(self, x, t, projected):
        self.calls += 1
        return torch.tanh(x.roll(1, -1) + projected)


def drawn():
    generator = torch.Generator().manual_seed(0)
    prompt, negative = (Conditioning(torch.randn(2, 3, 5, generator=generator)) for _ in range(2))
    return torch.randn(2, 4, 8, 8, generator=generator), prompt, negative


def outputs(network, x, prompt, negative):
    t = torch.full((2,), LEVEL.t)
    return network(x, t, network.project(prompt)), network(x, t, network.project(negative))


@pytest.mark.parametrize("prediction", [EPSILON, V], ids=lambda p: p.name)
@pytest.mark.parametrize("scale", [0.0, 3.0, 7.5])
def test_combining_x0_is_combining_outputs(prediction, scale):
    """Guidance in x0 space equals (1 + w) eps(prompt) - w eps(negative) with w = scale - 1, in the network's space."""
    x, prompt, negative = drawn()
    network = Mixing()
    towards, away = outputs(network, x, prompt, negative)
    mixed = scale * towards - (scale - 1) * away
    wanted = prediction.x0(mixed, x, LEVEL.alpha, LEVEL.sigma)
    got = CFG(scale).bind(Denoiser(network, SCHEDULE, prediction), prompt, negative)(x, LEVEL)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_one_batched_call_and_one_projection():
    x, prompt, negative = drawn()
    network = Mixing()
    CFG(7.5).bind(Denoiser(network, SCHEDULE, V), prompt, negative)(x, LEVEL)
    assert network.calls == 1


@pytest.mark.parametrize("prediction", [EPSILON, V], ids=lambda p: p.name)
def test_rescale_is_the_papers(prediction):
    x, prompt, negative = drawn()
    network = Mixing()
    towards, away = outputs(network, x, prompt, negative)
    mixed = away + 7.5 * (towards - away)
    same_spread = mixed * (towards.std((1, 2, 3)) / mixed.std((1, 2, 3)))[:, None, None, None]  # eq. 15
    mixed = 0.7 * same_spread + 0.3 * mixed  # eq. 16
    wanted = prediction.x0(mixed, x, LEVEL.alpha, LEVEL.sigma)
    got = CFG(7.5, rescale=0.7).bind(Denoiser(network, SCHEDULE, prediction), prompt, negative)(x, LEVEL)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
