"""Spacings: N07 over every number of steps, and the levels they end in."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_diffusion.diffusion.sigma_spacing import ALIGNED, ENDS_NOISY, FINITE_ONLY
from latent_diffusion.diffusion.spacing import SPACINGS, at_sigmas, at_times, levels, times
from latent_diffusion.diffusion.time_spacing import ddim_uniform_times
from latent_diffusion.errors import ConfigError
from latent_diffusion.schedules.cosine import CosineSchedule
from latent_diffusion.schedules.linear import LinearSchedule
from latent_diffusion.schedules.rectified_flow import RectifiedFlow
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

TABLE = ["leading", "linspace", "trailing", "sgm_uniform", "simple", "beta"]


def check(ts, steps, total):
    assert len(ts) == steps
    assert all(a > b for a, b in pairwise(ts))
    assert ts[-1] >= 0
    assert ts[0] <= total - 1


@pytest.mark.parametrize("intervals", [False, True])
@pytest.mark.parametrize("spacing", TABLE)
def test_n07_every_number_of_steps(spacing, intervals):
    """Right count, strictly falling, in range: exactly, for all 1000 numbers of steps; both offsets to 100."""
    for steps in range(1, 1001) if spacing != "beta" else (*range(1, 30), 50, 100, 333, 999, 1000):  # dearer to find
        for offset in (0, 1) if steps <= 100 else (steps // 2 % 2,):
            check(times(spacing, steps, 1000, steps_offset=offset, intervals=intervals), steps, 1000)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_n07_any_table(data):
    total = data.draw(st.integers(2, 2000))
    spacing = data.draw(st.sampled_from(TABLE))
    steps = data.draw(st.integers(1, total))
    offset = data.draw(st.integers(0, total))
    check(times(spacing, steps, total, steps_offset=offset, intervals=data.draw(st.booleans())), steps, total)


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50, 333, 1000])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_levels_fall_to_the_clean_latent(spacing, steps):
    visited = levels(CosineSchedule(), spacing, steps, intervals=True)
    assert [level.index for level in visited] == list(range(steps + 1))
    assert all(a.log_snr < b.log_snr for a, b in pairwise(visited))
    assert all(a.t >= b.t for a, b in pairwise(visited))
    assert (visited[-1].t, visited[-1].sigma == 0.0) == ((0.0, False) if spacing in ENDS_NOISY else (-1.0, True))


def test_final_first_ends_at_time_zero():
    schedule = LinearSchedule()
    assert levels(schedule, "trailing", 5, final="first")[-1] == schedule.level(0, index=5)


def test_known_values():
    """The times diffusers documents for Stable Diffusion: leading with offset 1 and trailing."""
    assert times("leading", 5, 1000, steps_offset=1) == [801, 601, 401, 201, 1]
    assert times("trailing", 5, 1000) == [999, 799, 599, 399, 199]
    assert times("linspace", 5, 1000) == [999, 749, 500, 250, 0]
    assert times("linspace", 1, 1000) == [999]


def test_karras_spans_the_table():
    schedule = LinearSchedule()
    visited = levels(schedule, "karras", 20)
    assert visited[0].sigma == pytest.approx(schedule.level(999).sigma, rel=1e-12)
    assert visited[-2].sigma == pytest.approx(schedule.level(0).sigma, rel=1e-9)
    assert (visited[0].t, visited[-2].t) == (999.0, 0.0)


@pytest.mark.parametrize("steps", [0, -3, 1001, 10**9])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_impossible_numbers_of_steps_are_refused(spacing, steps):
    with pytest.raises(ConfigError, match="1 to 1000"):
        levels(LinearSchedule(), spacing, steps)


RATIOS = {
    # sigma / alpha of Stable Diffusion's law as its users publish them (ComfyUI and diffusers at 20 steps)
    "beta": [14.6, 9.39, 4.37, 1.62, 0.655],
    "beta_sigma": [14.6, 13.4, 10.9, 6.79, 2.81],
}


@pytest.mark.parametrize("spacing", list(RATIOS))
def test_the_two_meanings_of_beta(spacing):
    """Every fourth (ComfyUI) or fifth of 20 steps: quantiles of the times, or of the noise levels."""
    visited = levels(ScaledLinearSchedule(), spacing, 20, fractional=True)
    ratios = [level.sigma / level.alpha for level in visited[:-1]]
    for wanted in RATIOS[spacing]:
        assert min(abs(ratio / wanted - 1) for ratio in ratios) < 0.01


def test_align_your_steps_at_ten_steps_is_the_published_list():
    """As diffusers has it; also A1111's list of sigma for Stable Diffusion 1."""
    from diffusers.schedulers import AysSchedules

    schedule = ScaledLinearSchedule()
    for name, published in (("ays_sd1", "StableDiffusionTimesteps"), ("ays_sdxl", "StableDiffusionXLTimesteps")):
        assert [level.t for level in levels(schedule, name, 10)[:-1]] == AysSchedules[published]
        assert list(ALIGNED[name]) == [*AysSchedules[published], 0]
    ratios = [level.sigma / level.alpha for level in levels(schedule, "ays_sd1", 10, fractional=True)[:-1]]
    assert ratios == pytest.approx([14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152], rel=5e-3)


def test_exponents():
    schedule = ScaledLinearSchedule()

    def ratios(spacing, **options):
        return [level.sigma / level.alpha for level in levels(schedule, spacing, 12, **options)[:-1]]

    assert ratios("karras") == ratios("karras", rho=7.0) != ratios("karras", rho=5.0)
    assert ratios("polyexponential") == pytest.approx(ratios("exponential"), rel=1e-12)
    assert ratios("polyexponential", rho=2.0) != pytest.approx(ratios("exponential"), rel=1e-2)
    for spacing, rho in (("trailing", 7.0), ("karras", 0.0), ("karras", -1.0), ("karras", float("nan"))):
        with pytest.raises(ConfigError, match="rho"):
            levels(schedule, spacing, 12, rho=rho)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_rectified_flow_is_spaced_by_its_own_sigma(spacing):
    visited = levels(RectifiedFlow(), spacing, 7)
    assert (visited[0].alpha, visited[0].sigma) == (0.0, 1.0) or spacing in ("leading", "ddim_uniform")
    assert all(a.sigma > b.sigma for a, b in pairwise(visited))
    assert visited[-1].t == (0.0 if spacing in ENDS_NOISY else -1.0)


def test_custom_levels():
    schedule = ScaledLinearSchedule()
    assert at_times(schedule, [999, 500.5, 0]) == [schedule.level(999), schedule.level(500.5, 1), schedule.level(0, 2)]
    ratios = [level.sigma / level.alpha for level in at_sigmas(schedule, [30.0, 2.0, 0.01])]
    assert ratios == pytest.approx([30.0, 2.0, 0.01], rel=1e-12)
    assert [level.sigma for level in at_sigmas(RectifiedFlow(), [1.0, 0.25])] == pytest.approx([1.0, 0.25])
    for wrong in ([], [5, 5], [1, 2], [1000], [-1], ["a"], [float("nan")], [True]):
        with pytest.raises(ConfigError, match="timesteps"):
            at_times(schedule, wrong)
    for wrong in ([], [1.0, 1.0], [0.5, 1.0], [1.5], [0.0], [float("inf")]):
        with pytest.raises(ConfigError, match="sigmas"):
            at_sigmas(RectifiedFlow(), wrong)


@pytest.mark.parametrize("spacing", FINITE_ONLY)
def test_spacings_of_infinite_sigma_are_refused(spacing):
    with pytest.raises(ConfigError, match="zero terminal SNR"):
        levels(ScaledLinearSchedule(zero_terminal_snr=True), spacing, 5)


def test_unknown_words_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'trailing'"):
        levels(LinearSchedule(), "trailling", 5)
    with pytest.raises(ConfigError, match="zero, first"):
        levels(LinearSchedule(), "trailing", 5, final="one")


def test_karras_is_refused_at_zero_terminal_snr():
    with pytest.raises(ConfigError, match="trailing"):
        levels(LinearSchedule(zero_terminal_snr=True), "karras", 5)


def noise_levels(visited):
    return [level.sigma / level.alpha for level in visited]


def least():
    level = ScaledLinearSchedule().level(0)
    return level.sigma / level.alpha


@pytest.mark.parametrize("asked", [2, 3, 10, 20, 28, 30, 31, 50])
def test_ddim_uniform_visits_the_times_of_comfyui(asked):
    """comfy/samplers.py `ddim_scheduler`: 1, 1 + s, ... below T with s = T // asked; often another number of steps."""
    wanted = list(range(1, 1000, 1000 // asked))[::-1]
    assert ddim_uniform_times(asked, 1000) == wanted
    assert times("ddim_uniform", len(wanted), 1000) == wanted
    assert (len(ddim_uniform_times(30, 1000)), ddim_uniform_times(30, 1000)[0]) == (31, 991)


@pytest.mark.parametrize("steps", [1, 11, 85, 600, 999, 1000])
def test_ddim_uniform_of_any_number_of_steps(steps):
    found = times("ddim_uniform", steps, 1000)
    assert len(found) == steps and all(a > b for a, b in pairwise(found)) and 0 <= found[-1] <= found[0] < 1000


def test_endings_of_the_a1111_web_ui():
    """modules/sd_schedulers.py: n sigmas to the end of the list and then 0; n + 1 sigmas to sigma_min and no 0."""
    schedule = ScaledLinearSchedule()
    aligned = noise_levels(levels(schedule, "ays_sd1_a1111", 10, fractional=True))
    assert aligned[-2:] == pytest.approx([least(), 0.0], rel=1e-4)
    shares = np.arange(11) / 10
    top = schedule.level(999)
    wanted = np.tan(shares * math.atan(least()) + (1 - shares) * math.atan(top.sigma / top.alpha))
    assert noise_levels(levels(schedule, "kl_optimal_a1111", 10)) == pytest.approx(wanted.tolist())
    assert noise_levels(levels(schedule, "kl_optimal", 10))[-1] == 0.0


def test_discarding_the_level_before_the_last():
    """11 levels of karras without the least noisy one, k-diffusion's `get_sigmas_karras(11)[:-2]` and 0."""
    schedule = ScaledLinearSchedule()
    longer = noise_levels(levels(schedule, "karras", 11))
    found = levels(schedule, "karras", 10, discard_next_to_last=True)
    assert noise_levels(found) == [*longer[:-2], 0.0]
    assert noise_levels(found)[-2] == pytest.approx(0.0744, abs=5e-5)
    assert [level.index for level in found] == list(range(11))
    with pytest.raises(ConfigError, match="at most 999 steps"):
        levels(schedule, "karras", 1000, discard_next_to_last=True)


@pytest.mark.parametrize("steps", [4, 10])
def test_discarding_divides_times_as_the_multistep_solvers_do(steps):
    schedule = ScaledLinearSchedule()
    found = levels(schedule, "linspace", steps, discard_next_to_last=True)
    assert found == levels(schedule, "linspace", steps, intervals=True)
