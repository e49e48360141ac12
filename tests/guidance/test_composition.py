"""Guidances together: what a step asks of the network, blends, intervals, and the order that is not the caller's."""

import dataclasses

import mixing
import pytest
import torch
from mixing import LEVEL, LEVELS, denoiser, drawn, x0_of

from latent_diffusion.conditioning import Blend, Conditioning
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.guidance import Combined
from latent_diffusion.diffusion.interval import Interval
from latent_diffusion.errors import ConfigError
from latent_diffusion.guidance.apg import APG
from latent_diffusion.guidance.autoguidance import Autoguidance
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.guidance.perp_neg import PerpNeg
from latent_diffusion.guidance.rescale import Rescale


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_predictions_of_one_network_are_one_call():
    x, prompt, negative, empty = drawn()
    model, weak = denoiser(), denoiser(shift=2)
    guidance = PerpNeg(5.0) + Autoguidance(2.0, weak) + Rescale(0.5)
    guidance.bind(model, prompt, negative, empty=empty)(x, LEVEL)
    assert model.network.seen == [6] and weak.network.seen == [2]


def test_slicing_is_one_row_after_another():
    x, prompt, negative, _ = drawn()
    model = denoiser()
    got = CFG(5.0).bind(model, prompt, negative, slicing=True)(x, LEVEL)
    assert model.network.seen == [1, 1, 1, 1]
    close(got, CFG(5.0).bind(model, prompt, negative)(x, LEVEL))


def test_conditions_of_different_lengths_take_a_call_each():
    x, prompt, negative = drawn(2, (9, 3))
    model = denoiser()
    got = CFG(5.0).bind(model, prompt, negative)(x, LEVEL)
    towards, away = x0_of(model, x, prompt), x0_of(model, x, negative)
    close(got, away + 5.0 * (towards - away))
    assert model.network.seen[:2] == [2, 2]


def test_the_sum_does_not_depend_on_its_order():
    x, prompt, negative, _ = drawn()
    parts = [CFG(5.0), Autoguidance(2.0, denoiser(shift=2)), Rescale(0.7)]
    first, second = (Combined(tuple(order)) for order in (parts, parts[::-1]))
    a, b = (guidance.bind(denoiser(), prompt, negative)(x, LEVEL) for guidance in (first, second))
    assert torch.equal(a, b)


def test_a_blend_is_the_papers_sum():
    """x0(negative) + scale * sum_i w_i (x0_i - x0(negative)), arXiv:2206.01714, algorithm 1."""
    x, first, second, negative, third = drawn(4, (3, 6, 3, 3))
    model = denoiser()
    blend = Blend(((first, 1.0), (second, 0.6), (third, -0.3)))
    got = CFG(4.0).bind(model, blend, negative)(x, LEVEL)
    away = x0_of(model, x, negative)
    pushes = [weight * (x0_of(model, x, cond) - away) for cond, weight in blend.terms]
    close(got, away + 4.0 * sum(pushes))


def test_a_blend_whose_weights_sum_to_one_needs_no_negative():
    x, first, second, negative = drawn()
    model = denoiser()
    got = CFG(1.0).bind(model, Blend(((first, 0.25), (second, 0.75))), negative)(x, LEVEL)
    assert model.network.seen == [4]
    close(got, 0.25 * x0_of(model, x, first) + 0.75 * x0_of(model, x, second))


def test_a_blend_is_sliced_repeated_and_moved_term_by_term():
    _, first, second, _ = drawn()
    blend = Blend(((first, 0.5), (second, 2.0)))
    assert len(blend) == 2 and len(blend[1:]) == 1 and len(blend.repeat_interleave(3)) == 6
    assert blend[1:].terms[1][0].context.equal(second.context[1:])
    assert blend.to(dtype=torch.float64).terms[0][0].context.dtype == torch.float64
    assert blend.rest == -1.5


@pytest.mark.parametrize("interval", [{"start": 0.25, "stop": 0.75}, {"sigma_low": 0.5, "sigma_high": 5.0}])
def test_an_interval_guides_inside_and_costs_one_row_outside(interval):
    x, prompt, negative, _ = drawn()
    model = denoiser()
    denoise = Interval(CFG(5.0), **interval).bind(model, prompt, negative, levels=LEVELS)
    for level, on in zip(LEVELS[:-1], (False, True, True, False), strict=True):
        model.network.seen.clear()
        got = denoise(x, level)
        assert model.network.seen == ([4] if on else [2])
        plain = CFG(5.0 if on else 1.0).bind(model, prompt, negative)(x, level)
        torch.testing.assert_close(got, plain, rtol=1e-6, atol=1e-6)


def test_an_interval_in_steps_holds_between_the_levels():
    """A sampler that looks at levels in between is inside as long as the step it makes is."""
    x, prompt, negative, _ = drawn()
    denoise = Interval(CFG(5.0), stop=0.5).bind(denoiser(), prompt, negative, levels=LEVELS)
    between = mixing.SCHEDULE.level(500.0)  # step 1 goes from 650 to 400
    after = mixing.SCHEDULE.level(399.0)
    assert not torch.equal(denoise(x, between), x0_of(denoiser(), x, prompt, between))
    assert torch.equal(denoise(x, after), x0_of(denoiser(), x, prompt, after))


def test_two_strengths_in_two_intervals():
    x, prompt, negative, _ = drawn()
    both = Interval(CFG(8.0), stop=0.5) + Interval(CFG(2.0), start=0.5)
    denoise = both.bind(denoiser(), prompt, negative, levels=LEVELS)
    for level, scale in zip(LEVELS[:-1], (8.0, 8.0, 2.0, 2.0), strict=True):
        assert torch.equal(denoise(x, level), CFG(scale).bind(denoiser(), prompt, negative)(x, level))


def test_two_that_weigh_at_one_level_are_refused():
    _, prompt, negative, _ = drawn()
    for guidance in (CFG(5.0) + APG(5.0), Interval(CFG(5.0), stop=0.6) + Interval(APG(5.0), start=0.4)):
        with pytest.raises(ConfigError, match="2 guidances weigh prompt against negative"):
            guidance.bind(denoiser(), prompt, negative, levels=LEVELS)


def test_steps_need_levels_and_ends_need_order():
    _, prompt, negative, _ = drawn()
    with pytest.raises(ConfigError, match="needs the levels"):
        Interval(CFG(5.0), start=0.5).bind(denoiser(), prompt, negative)
    for ends in ({"start": 0.5, "stop": 0.5}, {"start": -0.1}, {"stop": 1.1}, {"sigma_low": 3.0, "sigma_high": 2.0}):
        with pytest.raises(ConfigError, match="interval of guidance from"):
            Interval(CFG(5.0), **ends)


def test_extra_channels_and_sizes_reach_the_empty_prompt():
    """An inpainting U-Net reads the picture beside every prompt, also beside the empty one."""
    x, prompt, negative, empty = drawn()

    class Reads:
        def project(self, cond):
            return cond.concat.mean((1, 2, 3))[:, None, None, None] + cond.context.mean()

        def __call__(self, x, t, projected):
            return x * 0 + projected

    picture = torch.ones(2, 5, 8, 8)
    prompt, negative = (dataclasses.replace(cond, concat=picture) for cond in (prompt, negative))
    model = Denoiser(Reads(), mixing.SCHEDULE, mixing.EPSILON)
    assert PerpNeg(5.0).bind(model, prompt, negative, empty=empty)(x, LEVEL).isfinite().all()


def test_what_is_missing_is_said():
    _, prompt, negative, _ = drawn()
    with pytest.raises(ConfigError, match="needs the empty prompt"):
        PerpNeg(5.0).bind(denoiser(), prompt, negative)
    with pytest.raises(ConfigError, match=r"cfg: scale nan is not a number from 0 to 100"):
        CFG(float("nan"))


def test_a_gradient_flows_through_every_part():
    """Guidance is plain tensor arithmetic: losses may be taken on its result."""
    x, prompt, negative, _ = drawn()
    context = prompt.context.clone().requires_grad_()
    guided = (APG(5.0) + Rescale(0.5)).bind(denoiser(), Conditioning(context), negative)(x, LEVEL)
    guided.sum().backward()
    assert context.grad is not None and context.grad.isfinite().all()
