"""What every file in samplers/ must fulfil: a new one is tested by being there."""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, is_dataclass

import pytest
import torch

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.known import keep_known
from latent_diffusion.diffusion.level import Sampler
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.prediction import EPSILON, FLOW, X0, V
from latent_diffusion.diffusion.sigma_spacing import ENDS_NOISY, FINITE_ONLY
from latent_diffusion.diffusion.spacing import SPACINGS, levels
from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import find, names
from latent_diffusion.schedules.linear import LinearSchedule
from latent_diffusion.schedules.rectified_flow import RectifiedFlow
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

SCHEDULE = ScaledLinearSchedule()
CASES = {
    "epsilon": (SCHEDULE, EPSILON),
    "v": (SCHEDULE, V),
    "x0": (SCHEDULE, X0),
    "v-zero": (ScaledLinearSchedule(zero_terminal_snr=True), V),
    "x0-zero": (ScaledLinearSchedule(zero_terminal_snr=True), X0),
    "flow": (RectifiedFlow(), FLOW),
    "flow-shift": (RectifiedFlow(shift=3.0), FLOW),
    "v-on-flow": (RectifiedFlow(), V),
}


SAMPLERS = names("latent_diffusion.samplers")
# Levels are computed without the sampler, so spacings are tried on one sampler of each kind: noisy, several levels of
# history, and two evaluations a step at times between the spacing's own.
KINDS = ["ddpm", "dpmpp_2m", "dpm2"]


@pytest.fixture(params=SAMPLERS)
def sampler(request) -> Sampler:
    return find("latent_diffusion.samplers", request.param)()


class Tanh:
    """A network."""

    def project(self, cond):
        return None

    def __call__(self, x, t, projected):
        assert ((t >= 0) & (t <= 1000)).all()
        return 0.7 * torch.tanh(x.roll(1, -1) + 0.5 * x) + torch.sin(t / 200)[:, None, None, None]


def curved(x, level):
    """A denoiser that mixes neighbours but never images."""
    return 0.6 * torch.tanh(x.roll(1, -1) + 0.3 * x) + 0.1 * level.alpha


def run(sampler, seeds=(1, 2, 3, 4), *, denoise=curved, steps=8, spacing="trailing", schedule=SCHEDULE):
    noise = NoiseSource(seeds)
    x = noise.draw((4, 8, 8))
    visited = levels(schedule, spacing, steps, intervals=sampler.intervals, fractional=sampler.fractional)
    return list(sampler(denoise, x, visited, noise))


def test_is_a_frozen_dataclass_with_an_order(sampler):
    assert is_dataclass(sampler) and isinstance(sampler, Sampler)
    assert sampler.order >= 0
    with pytest.raises((FrozenInstanceError, AttributeError)):
        sampler.order = 3


@pytest.mark.parametrize(
    ("sampler", "spacing"),
    [(name, "trailing") for name in SAMPLERS]
    + [(name, spacing) for name in KINDS for spacing in SPACINGS if spacing != "trailing"],
    indirect=["sampler"],
)
def test_one_step_per_pair_of_levels(sampler, spacing):
    """Shapes and dtype stay, x0 is what the denoiser said last, and the last x is the last x0: the clean latent."""
    for steps in (1, 2, 20):
        done = run(sampler, spacing=spacing, steps=steps)
        assert [step.index for step in done] == list(range(steps))
        for step in done:
            assert step.x.shape == step.x0.shape == (4, 4, 8, 8)
            assert step.x.dtype == step.x0.dtype == torch.float32
            assert step.x.isfinite().all()
        if spacing not in ENDS_NOISY:
            assert torch.equal(done[-1].x, done[-1].x0)


@pytest.mark.parametrize("sampler", KINDS, indirect=True)
def test_all_training_steps_are_allowed(sampler):
    schedule = LinearSchedule(num_train_timesteps=40, beta_start=0.01, beta_end=0.3)
    for spacing in SPACINGS:
        assert run(sampler, steps=40, spacing=spacing, schedule=schedule)[-1].x.isfinite().all()


def test_batch_of_four_equals_four_singles(sampler):
    """Bit-equal: image k draws from its own stream and the arithmetic is elementwise."""
    together = run(sampler)[-1].x
    alone = torch.cat([run(sampler, [seed])[-1].x for seed in (1, 2, 3, 4)])
    assert torch.equal(together, alone)


def test_same_seed_same_latent_and_no_state_between_calls(sampler):
    first = run(sampler)[-1].x
    run(sampler, [9], steps=3)
    assert torch.equal(first, run(sampler)[-1].x)
    assert not torch.equal(first, run(sampler, [5, 6, 7, 8])[-1].x)


def test_two_interleaved_runs_do_not_meet(sampler):
    """Steps of two pictures taken in turn equal each taken alone."""
    visited = levels(SCHEDULE, "trailing", 6, intervals=sampler.intervals, fractional=sampler.fractional)
    walks = []
    for seed in (1, 2):
        noise = NoiseSource([seed])
        walks.append(sampler(curved, noise.draw((4, 8, 8)), visited, noise))
    for one, two in zip(*walks, strict=True):
        last = one.x, two.x
    for seed, x in zip((1, 2), last, strict=True):
        assert torch.equal(x, run(sampler, [seed], steps=6)[-1].x)


def test_two_threads_equal_solo(sampler):
    """One sampler object, two threads, many switches between them: bit-equal to each alone."""
    switched, interval = [], sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as pool:
            switched = [last.x for *_, last in pool.map(lambda seed: run(sampler, [seed]), (1, 2))]
    finally:
        sys.setswitchinterval(interval)
    for seed, x in zip((1, 2), switched, strict=True):
        assert torch.equal(x, run(sampler, [seed])[-1].x)


def test_x_is_not_changed_in_place(sampler):
    noise = NoiseSource([1])
    x = noise.draw((4, 8, 8))
    before = x.clone()
    list(sampler(curved, x, levels(SCHEDULE, "trailing", 4), noise))
    assert torch.equal(x, before)


def test_zero_terminal_snr(sampler):
    """The first level has alpha 0: no sampler divides by it."""
    done = run(sampler, schedule=ScaledLinearSchedule(zero_terminal_snr=True))
    assert all(step.x.isfinite().all() for step in done)


@pytest.mark.parametrize(
    ("sampler", "spacing"),
    [(name, "trailing") for name in SAMPLERS]
    + [(name, spacing) for name in KINDS for spacing in SPACINGS if spacing != "trailing"],
    indirect=["sampler"],
)
def test_any_spacing_on_any_law_and_prediction(sampler, spacing):
    """Finite, and never a level of which the network is told nothing; only a spacing without place is refused."""
    for case, (schedule, prediction) in CASES.items():
        if case.endswith("zero") and spacing in FINITE_ONLY:
            with pytest.raises(ConfigError, match="zero terminal SNR"):
                run(sampler, spacing=spacing, schedule=schedule)
            continue
        denoise = Denoiser(Tanh(), schedule, prediction).bind(Conditioning(torch.zeros(1, 1, 1)))
        done = run(sampler, [1], denoise=denoise, schedule=schedule, spacing=spacing, steps=5)
        assert all(step.x.isfinite().all() for step in done), case
        assert spacing in ENDS_NOISY or torch.equal(done[-1].x, done[-1].x0), case


def test_rectified_flow_batch_of_four_equals_four_singles(sampler):
    together = run(sampler, schedule=RectifiedFlow())[-1].x
    alone = torch.cat([run(sampler, [seed], schedule=RectifiedFlow())[-1].x for seed in (1, 2, 3, 4)])
    assert torch.equal(together, alone)


def test_perfect_denoiser_lands_on_the_picture(sampler):
    picture = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    done = run(sampler, denoise=lambda x, level: picture.expand_as(x))
    torch.testing.assert_close(done[-1].x, picture.expand(4, -1, -1, -1), rtol=0, atol=0)


def test_keep_known_keeps_the_known_part(sampler):
    """Outside the mask the latent is the known picture, exactly; inside it is not."""
    known = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 3:7] = 1.0
    x = run(sampler, denoise=keep_known(curved, known, mask))[-1].x
    outside = mask.expand_as(x) == 0
    assert torch.equal(x[outside], known.expand_as(x)[outside])
    assert (x - known).abs()[~outside].mean() > 0.1


def test_keep_known_with_nothing_known_changes_nothing(sampler):
    everything = keep_known(curved, torch.zeros(1, 4, 8, 8), torch.ones(1, 1, 8, 8))
    assert torch.equal(run(sampler, denoise=everything)[-1].x, run(sampler)[-1].x)
