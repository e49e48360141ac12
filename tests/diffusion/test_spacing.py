"""Spacings: N07 over every number of steps, and the levels they end in."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_diffusion.diffusion.spacing import SPACINGS, levels, times
from latent_diffusion.errors import ConfigError
from latent_diffusion.schedules.cosine import CosineSchedule
from latent_diffusion.schedules.linear import LinearSchedule

TABLE = ["leading", "linspace", "trailing"]


def check(ts, steps, total):
    assert len(ts) == steps
    assert all(a > b for a, b in pairwise(ts))
    assert ts[-1] >= 0
    assert ts[0] <= total - 1


@pytest.mark.parametrize("intervals", [False, True])
@pytest.mark.parametrize("spacing", TABLE)
def test_n07_every_number_of_steps(spacing, intervals):
    """Right count, strictly falling, in range: exactly, for all 1000 numbers of steps and both common offsets."""
    for steps in range(1, 1001):
        for offset in (0, 1):
            check(times(spacing, steps, 1000, steps_offset=offset, intervals=intervals), steps, 1000)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_n07_any_table(data):
    total = data.draw(st.integers(2, 2000))
    steps = data.draw(st.integers(1, total))
    offset = data.draw(st.integers(0, total))
    spacing = data.draw(st.sampled_from(TABLE))
    check(times(spacing, steps, total, steps_offset=offset, intervals=data.draw(st.booleans())), steps, total)


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50, 333, 1000])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_levels_fall_to_the_clean_latent(spacing, steps):
    visited = levels(CosineSchedule(), spacing, steps, intervals=True)
    assert [level.index for level in visited] == list(range(steps + 1))
    assert all(a.log_snr < b.log_snr for a, b in pairwise(visited))
    assert all(a.t >= b.t for a, b in pairwise(visited))
    assert (visited[-1].alpha, visited[-1].sigma, visited[-1].t) == (1.0, 0.0, -1.0)


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


def test_unknown_words_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'trailing'"):
        levels(LinearSchedule(), "trailling", 5)
    with pytest.raises(ConfigError, match="zero, first"):
        levels(LinearSchedule(), "trailing", 5, final="one")


def test_karras_is_refused_at_zero_terminal_snr():
    with pytest.raises(ConfigError, match="trailing"):
        levels(LinearSchedule(zero_terminal_snr=True), "karras", 5)
