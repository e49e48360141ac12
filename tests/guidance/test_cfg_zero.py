"""CFG-Zero* against diffusers', and its zero steps."""

import pytest
import torch
from mixing import LEVEL, LEVELS, Mixing, denoiser, drawn, output_of

from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.prediction import EPSILON, FLOW, V
from latent_diffusion.errors import ConfigError
from latent_diffusion.guidance.cfg_zero import CFGZero
from latent_diffusion.schedules.rectified_flow import RectifiedFlow


@pytest.mark.parametrize("prediction", [EPSILON, V], ids=lambda p: p.name)
def test_equals_diffusers_on_the_output(prediction):
    from diffusers.guiders import ClassifierFreeZeroStarGuidance

    x, prompt, negative, _ = drawn()
    model = denoiser(prediction)
    towards, away = (output_of(model, x, cond) for cond in (prompt, negative))
    theirs = ClassifierFreeZeroStarGuidance(guidance_scale=6.0, zero_init_steps=0)
    theirs._step = 0
    wanted = model.x0(theirs.forward(towards, away).pred, x, LEVEL)
    got = CFGZero(6.0).bind(model, prompt, negative)(x, LEVEL)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)


def test_scale_zero_is_the_negative_scaled_to_fit():
    x, prompt, negative, _ = drawn()
    model = denoiser(V)
    got = model.output(CFGZero(0.0).bind(model, prompt, negative)(x, LEVEL), x, LEVEL)
    towards, away = (output_of(model, x, cond).flatten(1) for cond in (prompt, negative))
    left = towards - got.flatten(1)
    assert ((left * away).sum(1) / left.norm(dim=1) / away.norm(dim=1)).abs().max() < 1e-5  # the best fit


def test_zero_steps_leave_a_flow_where_it_is():
    x, prompt, negative, _ = drawn()
    schedule = RectifiedFlow()
    levels = [schedule.level(t, k) for k, t in enumerate((999.0, 700.0, 400.0, 100.0))]
    model = Denoiser(Mixing(), schedule, FLOW)
    denoise = CFGZero(6.0, zero_steps=2).bind(model, prompt, negative, levels=levels)
    for k, level in enumerate(levels):
        x0 = denoise(x, level)
        still = model.output(x0, x, level).abs().max() < 1e-5
        assert still == (k < 2)
        if not still:
            assert torch.equal(x0, CFGZero(6.0).bind(model, prompt, negative)(x, level))


def test_zero_steps_are_refused_where_zero_is_no_velocity():
    _, prompt, negative, _ = drawn()
    with pytest.raises(ConfigError, match="zero_steps 1 needs a flow model"):
        CFGZero(6.0, zero_steps=1).bind(denoiser(EPSILON), prompt, negative, levels=LEVELS)
