"""Adaptive projected guidance against diffusers' (in the form of the paper) and its own properties."""

import math

import pytest
import torch
from mixing import LEVELS, denoiser, drawn, x0_of

from latent_diffusion.diffusion.prediction import EPSILON, X0, V
from latent_diffusion.guidance.apg import APG
from latent_diffusion.guidance.cfg import CFG


@pytest.mark.parametrize("prediction", [EPSILON, V, X0], ids=lambda p: p.name)
@pytest.mark.parametrize("momentum", [0.0, -0.5])
def test_equals_diffusers_on_x0(prediction, momentum):
    """Over four steps; diffusers' original formulation counts the scale from the prompt, one less than ours."""
    from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

    x, prompt, negative, _ = drawn()
    model = denoiser(prediction)
    denoise = APG(6.0, eta=0.3, max_norm=8.0, momentum=momentum).bind(model, prompt, negative)
    memory = MomentumBuffer(momentum) if momentum else None
    for level in LEVELS[:-1]:
        towards, away = (x0_of(model, x, cond, level) for cond in (prompt, negative))
        wanted = normalized_guidance(towards, away, 5.0, memory, 0.3, 8.0, use_original_formulation=True)
        torch.testing.assert_close(denoise(x, level), wanted, rtol=1e-5, atol=1e-5)


def test_without_its_changes_it_is_cfg():
    x, prompt, negative, _ = drawn()
    plain = APG(6.0, eta=1.0, max_norm=math.inf, momentum=0.0)
    for level in LEVELS[:-1]:
        got = plain.bind(denoiser(), prompt, negative)(x, level)
        wanted = CFG(6.0).bind(denoiser(), prompt, negative)(x, level)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)


def test_at_eta_zero_nothing_is_added_along_the_prompts_estimate():
    x, prompt, negative, _ = drawn()
    got = APG(6.0).bind(denoiser(), prompt, negative)(x, LEVELS[2])
    plain = x0_of(denoiser(), x, prompt)
    across = ((got - plain) * plain).sum((1, 2, 3)) / (got - plain).norm() / plain.norm()
    assert across.abs().max() < 1e-6


def test_the_norm_is_bounded():
    x, prompt, negative, _ = drawn()
    got = APG(6.0, eta=1.0, max_norm=0.5).bind(denoiser(), prompt, negative)(x, LEVELS[2])
    lengths = (got - x0_of(denoiser(), x, prompt)).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((2,), 5 * 0.5), rtol=1e-5, atol=0)


def test_rising_noise_begins_a_new_path():
    """After a jump back (resampling, restart) the push of the old path is forgotten."""
    x, prompt, negative, _ = drawn()
    denoise = APG(6.0, momentum=-0.5).bind(denoiser(), prompt, negative)
    first = [denoise(x, level) for level in LEVELS[:3]]
    again = [denoise(x, level) for level in LEVELS[:3]]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[2], APG(6.0, momentum=-0.5).bind(denoiser(), prompt, negative)(x, LEVELS[2]))
