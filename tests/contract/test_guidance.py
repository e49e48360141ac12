"""What every file in guidance/ must fulfil."""

import dataclasses
import inspect

import pytest
import torch

from latent_diffusion.conditioning import Blend, Conditioning
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.guidance import Guidance
from latent_diffusion.diffusion.interval import Interval
from latent_diffusion.diffusion.prediction import EPSILON, V
from latent_diffusion.families import tiny
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.models.unet import UNet
from latent_diffusion.registry import find, names
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

SCHEDULE = ScaledLinearSchedule()
LEVEL = SCHEDULE.level(700)
LEVELS = [SCHEDULE.level(t, k) for k, t in enumerate((999.0, 700.0, 400.0, 100.0, -1.0))]
SHAPE = (2, 4, 8, 8)
SCALED = ("apg", "cfg", "cfg_zero")  # scale 1 = prompt alone, scale 0 = negative alone (where nothing else is changed)
SCALE_ONLY = {"apg": {"eta": 1.0, "max_norm": float("inf"), "momentum": 0.0}}  # without what is not linear in the scale
REMEMBERING = {"apg": {"momentum": -0.5}}


class Counting(UNet):
    """A tiny U-Net that counts its calls."""

    calls = 0

    def forward(self, x, t, projected):
        self.calls += 1
        return super().forward(x, t, projected)


def seeded(kind=UNet, seed=0):
    torch.manual_seed(seed)
    network = kind(tiny.UNET).eval()
    with torch.no_grad():
        network.conv_out.weight.mul_(3)  # outputs of about unit size, as a trained network's
    return network


def brightness(x, t):
    return (x.mean((1, 2, 3)) - 0.2).square().neg() * 50 + 0 * t


def likeness(context):
    """A score that depends on the picture and on its own text alone."""
    return lambda x, t: (x.mean((1, 2, 3)) - context.mean((1, 2))).square().neg() * 50 + 0 * t


@pytest.fixture(scope="module")
def network():
    return seeded(Counting)


@pytest.fixture(scope="module")
def weak():
    return Denoiser(seeded(seed=1), SCHEDULE, EPSILON)


@pytest.fixture(params=[EPSILON, V], ids=lambda p: p.name)
def denoiser(request, network):
    return Denoiser(network, SCHEDULE, request.param)


@pytest.fixture(params=names("latent_diffusion.guidance"))
def name(request):
    return request.param


@pytest.fixture
def build(weak):
    """Return a maker of any guidance, with what cannot be told in numbers filled in."""
    rest = {
        "autoguidance": {"scale": 2.0, "weak": weak},
        "classifier": {"scale": 1.5, "log_prob": brightness},
        "noised_clip": {"scale": 1.5, "score": likeness},
    }

    def made(name, **arguments):
        return find("latent_diffusion.guidance", name)(**{**rest.get(name, {}), **arguments})

    return made


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    conds = [Conditioning(torch.randn(2, 5, 32, generator=generator)) for _ in range(3)]
    return torch.randn(SHAPE, generator=generator), *conds


@torch.no_grad()
def run(guidance, denoiser, x, prompt, negative, empty, level=LEVEL, **how):
    return guidance.bind(denoiser, prompt, negative, empty=empty, levels=LEVELS, **how)(x, level)


@torch.no_grad()
def unguided(denoiser, x, cond):
    return denoiser.bind(cond)(x, LEVEL)


def close(a, b, tolerance=1e-5):
    """Agree relative to the largest value: an x0 made of float32 noise estimates is as exact as its largest part."""
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max()))


def test_is_a_frozen_guidance_whose_first_argument_is_its_strength(name):
    kind = find("latent_diffusion.guidance", name)
    assert issubclass(kind, Guidance) and dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    first = next(iter(inspect.signature(kind).parameters.values()))
    assert first.name in ("scale", "share", "quantile") and first.annotation is float


def test_neutral_arguments_are_unguided_and_cost_one_call(name, build, denoiser, drawn):
    x, prompt, *_ = drawn
    wanted = unguided(denoiser, x, prompt)
    calls = denoiser.network.calls
    got = run(build(name, **find("latent_diffusion.guidance", name).neutral), denoiser, *drawn)
    if name == "perp_neg":  # x0(empty) + 1 * (x0(prompt) - x0(empty)), made as it stands
        close(got, wanted)
    else:
        assert torch.equal(got, wanted)
    assert denoiser.network.calls == calls + 1


def test_neutral_arguments_leave_plain_cfg(name, build, denoiser, drawn):
    if name in ("cfg", "apg", "cfg_zero", "perp_neg"):
        pytest.skip("stands in the place of CFG")
    got = run(CFG(5.0) + build(name, **find("latent_diffusion.guidance", name).neutral), denoiser, *drawn)
    close(got, run(CFG(5.0), denoiser, *drawn), 1e-6)


def test_default_arguments_change_the_picture(name, build, denoiser, drawn):
    guidance = CFG(7.5) + build(name) if name in ("rescale", "threshold") else build(name)
    plain = CFG(7.5) if name in ("rescale", "threshold") else CFG(1.0)
    assert (run(guidance, denoiser, *drawn) - run(plain, denoiser, *drawn)).abs().max() > 1e-3


@pytest.mark.parametrize("name", SCALED)
def test_scale_one_is_unguided(name, build, denoiser, drawn):
    x, prompt, *_ = drawn
    assert torch.equal(run(build(name, scale=1.0), denoiser, *drawn), unguided(denoiser, x, prompt))


@pytest.mark.parametrize("name", ["apg", "cfg", "cfg_zero", "perp_neg"])
def test_equal_prompts_are_unguided(name, build, denoiser, drawn):
    x, prompt, *_ = drawn
    got = run(build(name, scale=7.5), denoiser, x, prompt, prompt, prompt)
    close(got, unguided(denoiser, x, prompt))


@pytest.mark.parametrize("name", ["apg", "cfg"])
def test_scale_zero_is_the_negative_prompt(name, build, denoiser, drawn):
    x, _, negative, _ = drawn
    got = run(build(name, scale=0.0, **SCALE_ONLY.get(name, {})), denoiser, *drawn)
    torch.testing.assert_close(got, unguided_in_batch(denoiser, drawn), rtol=0, atol=0 if name == "cfg" else 1e-5)
    close(got, unguided(denoiser, x, negative))


@torch.no_grad()
def unguided_in_batch(denoiser, drawn):
    x, prompt, negative, _ = drawn
    return denoiser.bind(Conditioning.cat([negative, prompt]))(torch.cat([x, x]), LEVEL).chunk(2)[0]


def test_batch_invariance(name, build, denoiser, drawn):
    x, *conds = drawn
    guidance = CFG(5.0) + build(name) if name in ("rescale", "threshold") else build(name)
    together = run(guidance, denoiser, x, *conds)
    for k in (0, 1):
        rows = slice(k, k + 1)
        close(run(guidance, denoiser, x[rows], *(cond[rows] for cond in conds)), together[rows])


def test_slicing_changes_nothing_but_the_number_of_calls(name, build, denoiser, drawn):
    guidance = CFG(5.0) + build(name) if name in ("rescale", "threshold") else build(name)
    together = run(guidance, denoiser, *drawn)
    calls = denoiser.network.calls
    close(run(guidance, denoiser, *drawn, slicing=True), together)
    assert denoiser.network.calls - calls >= 2


def test_float32_and_shape(name, build, denoiser, drawn):
    guided = run(build(name), denoiser, *drawn)
    assert guided.shape == SHAPE and guided.dtype == torch.float32
    assert guided.isfinite().all()


def test_a_negative_that_is_not_needed_has_no_part(name, build, denoiser, drawn):
    guidance = build(name)
    if guidance.needs_negative:
        pytest.skip("needs it")
    x, prompt, negative, empty = drawn
    other = run(guidance, denoiser, x, prompt, prompt, empty)
    assert torch.equal(other, run(guidance, denoiser, x, prompt, negative, empty))


def test_two_calls_do_not_know_of_each_other(name, build, denoiser, drawn):
    """Interleaved steps of two bound calls give what each gives alone, also where steps remember (momentum)."""
    x, *conds = drawn
    guidance = build(name, **REMEMBERING.get(name, {}))

    def steps(order):
        bound = [guidance.bind(denoiser, conds[0], conds[1], empty=conds[2], levels=LEVELS) for _ in range(2)]
        return {(who, k): bound[who](x * (who + 1), LEVELS[k]) for who, k in order}

    with torch.no_grad():
        alone = steps([(0, 0), (0, 1), (1, 0), (1, 1)])
        mixed = steps([(0, 0), (1, 0), (1, 1), (0, 1)])
    assert all(torch.equal(alone[key], mixed[key]) for key in alone)


def test_outside_its_interval_a_guidance_costs_nothing(name, build, denoiser, drawn):
    x, prompt, *_ = drawn
    guidance = Interval(build(name), start=0.5)  # LEVEL is step 1 of 4
    wanted = unguided(denoiser, x, prompt)
    calls = denoiser.network.calls
    assert torch.equal(run(guidance, denoiser, *drawn), wanted)
    assert denoiser.network.calls == calls + 1


def test_takes_a_blend_as_prompt(name, build, denoiser, drawn):
    """A blend of the prompt with itself, halves, is the prompt."""
    x, prompt, negative, empty = drawn
    guidance = build(name)
    half = Blend(((prompt, 0.5), (prompt, 0.5)))
    close(run(guidance, denoiser, x, half, negative, empty), run(guidance, denoiser, *drawn), 1e-4)
