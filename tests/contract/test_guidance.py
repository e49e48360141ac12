"""What every file in guidance/ must fulfil."""

import inspect

import pytest
import torch

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.prediction import EPSILON, V
from latent_diffusion.registry import find, names
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

SCHEDULE = ScaledLinearSchedule()
LEVEL = SCHEDULE.level(700)
SHAPE = (2, 4, 8, 8)


class Mixing:
    """A network whose output depends on the image, the time and the context."""

    def __init__(self):
        self.calls = 0

    def project(self, cond):
        return cond.context.mean((1, 2))[:, None, None, None]

    def __call__(self, x, t, projected):
        self.calls += 1
        return torch.tanh(x.roll(1, -1) + projected) * (1 + t[:, None, None, None] / 1000)


@pytest.fixture(params=names("latent_diffusion.guidance"))
def kind(request):
    return find("latent_diffusion.guidance", request.param)


@pytest.fixture(params=[EPSILON, V], ids=lambda p: p.name)
def denoiser(request):
    return Denoiser(Mixing(), SCHEDULE, request.param)


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    prompt, negative = (Conditioning(torch.randn(2, 3, 5, generator=generator)) for _ in range(2))
    return torch.randn(SHAPE, generator=generator), prompt, negative


def test_scale_one_is_unguided(kind, denoiser, drawn):
    x, prompt, negative = drawn
    unguided = denoiser.bind(prompt)(x, LEVEL)
    calls = denoiser.network.calls
    assert torch.equal(kind(scale=1.0).bind(denoiser, prompt, negative)(x, LEVEL), unguided)
    assert denoiser.network.calls == calls + 1


def test_equal_prompts_are_unguided(kind, denoiser, drawn):
    x, prompt, _ = drawn
    guided = kind(scale=7.5).bind(denoiser, prompt, prompt)(x, LEVEL)
    torch.testing.assert_close(guided, denoiser.bind(prompt)(x, LEVEL), rtol=1e-5, atol=1e-5)


def test_scale_zero_is_the_negative_prompt(kind, denoiser, drawn):
    x, prompt, negative = drawn
    guided = kind(scale=0.0).bind(denoiser, prompt, negative)(x, LEVEL)
    torch.testing.assert_close(guided, denoiser.bind(negative)(x, LEVEL), rtol=0, atol=0)


def test_batch_invariance(kind, denoiser, drawn):
    x, prompt, negative = drawn
    guidance = kind(scale=5.0)
    together = guidance.bind(denoiser, prompt, negative)(x, LEVEL)
    for k in (0, 1):
        rows = slice(k, k + 1)
        alone = guidance.bind(denoiser, prompt[rows], negative[rows])(x[rows], LEVEL)
        torch.testing.assert_close(alone, together[rows], rtol=1e-6, atol=1e-6)


def test_float32_and_shape(kind, denoiser, drawn):
    x, prompt, negative = drawn
    guided = kind(scale=5.0).bind(denoiser, prompt, negative)(x, LEVEL)
    assert guided.shape == SHAPE and guided.dtype == torch.float32


def test_has_a_scale_first(kind):
    assert next(iter(inspect.signature(kind).parameters)) == "scale"
