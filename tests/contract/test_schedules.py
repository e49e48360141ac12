"""What every file in schedules/ must fulfil, with and without zero terminal SNR."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from latent_diffusion.checkpoint.folder.scheduler_config import read_schedule, write_schedule
from latent_diffusion.diffusion.discrete_vp import DiscreteVP
from latent_diffusion.diffusion.level import NoiseSchedule
from latent_diffusion.diffusion.prediction import EPSILON, prediction_named
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.registry import find, names
from latent_diffusion.schedules.rectified_flow import RectifiedFlow

NAMES = names("latent_diffusion.schedules")
TABLES = [name for name in NAMES if issubclass(find("latent_diffusion.schedules", name), DiscreteVP)]
LAWS = {
    **{name: find("latent_diffusion.schedules", name)() for name in NAMES},
    **{f"{name}-zero": find("latent_diffusion.schedules", name)(zero_terminal_snr=True) for name in TABLES},
    "rectified_flow-shift3": RectifiedFlow(shift=3.0),
}


@pytest.fixture(params=TABLES)
def kind(request):
    return find("latent_diffusion.schedules", request.param)


@pytest.fixture(params=list(LAWS))
def schedule(request) -> NoiseSchedule:
    return LAWS[request.param]


def test_snr_strictly_falls(schedule):
    log_snr = [schedule.level(t).log_snr for t in range(-1, 1000)]
    assert log_snr[0] == math.inf
    assert all(a > b for a, b in pairwise(log_snr))


def test_variance_is_preserved_or_the_line_is_straight(schedule):
    power = 2 if isinstance(schedule, DiscreteVP) else 1
    for t in (0, 1, 250.25, 998.5, 999):
        level = schedule.level(t)
        assert level.alpha**power + level.sigma**power == pytest.approx(1.0, abs=1e-14)


def test_time_of_inverts_level(schedule):
    for t in np.linspace(0.0, 999.0, 778).tolist():
        assert schedule.time_of(schedule.level(t).log_snr) == pytest.approx(t, abs=1e-6)
    assert schedule.time_of(math.inf) == -1.0
    assert schedule.time_of(-1e9) == 999.0
    assert schedule.time_of(1e9) == 0.0


def test_fractional_times_lie_between_their_neighbours(schedule):
    for t in (-1, 0, 500, 998):
        values = [schedule.level(t + share).log_snr for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
        assert values == sorted(values, reverse=True)
        assert len(set(values)) == 5


def test_host_and_tensor_paths_agree(schedule):
    times = [-1, 0, 1, 500, 998, 999]
    alpha, sigma = schedule.alpha_sigma(torch.tensor(times))
    assert alpha.dtype == sigma.dtype == torch.float64
    assert [(a, s) for a, s in zip(alpha.tolist(), sigma.tolist(), strict=True)] == [
        (schedule.level(t).alpha, schedule.level(t).sigma) for t in times
    ]
    fractional = schedule.alpha_sigma(torch.tensor([0.5, 998.5]))[0].tolist()
    assert fractional == [schedule.level(0.5).alpha, schedule.level(998.5).alpha]


def test_level_at_is_exact_and_knows_its_time(schedule):
    for log_snr in (12.0, 8.0, 0.3, -1.7, -4.0):
        level = schedule.level_at(log_snr, 7)
        assert level.log_snr == pytest.approx(log_snr, abs=1e-12)
        assert (level.index, level.t, level.law) == (7, schedule.time_of(log_snr), schedule)
    clean, noise = schedule.level_at(math.inf), schedule.level_at(-math.inf)
    assert (clean.t, clean.alpha, clean.sigma) == (-1.0, 1.0, 0.0)
    assert (noise.t, noise.alpha, noise.sigma) == (999.0, 0.0, 1.0)


def test_levels_find_others_of_their_law(schedule):
    level = schedule.level(500, 3)
    assert level.at(schedule.level(250).log_snr).t == pytest.approx(250, abs=1e-6)
    assert level.at_time(250) == schedule.level(250, 3)


def test_rectified_flow_tells_its_noise_level():
    """diffusers' flow-matching schedulers tell the network 1000 sigma."""
    for schedule in (RectifiedFlow(), RectifiedFlow(shift=3.0)):
        for t in (0, 499, 999):
            assert schedule.network_time(t) == pytest.approx(1000 * schedule.level(t).sigma, rel=1e-14)
        assert schedule.network_time(torch.tensor([999])).tolist() == [1000.0]
    assert RectifiedFlow(shift=3.0).level(499).sigma == pytest.approx(3 * 0.5 / (1 + 2 * 0.5))
    for shift in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="shift"):
            RectifiedFlow(shift=shift)


def test_n06_zero_terminal_snr_is_exact(kind):
    """The last alpha-bar is exactly 0, the first is kept, and the last level is pure noise."""
    plain, zero = kind(), kind(zero_terminal_snr=True)
    assert zero.alphas_cumprod[-1] == 0.0
    assert zero.alphas_cumprod[0] == pytest.approx(plain.alphas_cumprod[0], rel=1e-14)
    last = zero.level(999)
    assert (last.alpha, last.sigma, last.log_snr) == (0.0, 1.0, -math.inf)


def test_levels_are_host_floats(schedule):
    level = schedule.level(10)
    assert all(type(value) is float for value in (level.t, level.alpha, level.sigma, level.log_snr))


def test_times_off_the_table_are_refused(schedule):
    for t in (-1.5, 999.5, 1000):
        with pytest.raises(ConfigError, match="outside"):
            schedule.level(t)


@pytest.mark.parametrize("name", NAMES)
def test_schedules_are_values(name):
    kind = find("latent_diffusion.schedules", name)
    assert kind() == kind()
    assert hash(kind()) == hash(kind())
    with pytest.raises(ConfigError, match="num_train_timesteps"):
        kind(num_train_timesteps=1)


@pytest.mark.parametrize("steps", [1000, 500])
@pytest.mark.parametrize("name", NAMES)
def test_a_saved_law_is_read_again_and_diffusers_reads_the_same(name, steps):
    import diffusers

    kind = find("latent_diffusion.schedules", name)
    schedule, forms = kind(num_train_timesteps=steps), getattr(kind, "schedulers", ())
    if not forms:
        with pytest.raises(CheckpointError, match=f"no name for the schedule {kind.__name__}"):
            write_schedule(schedule, EPSILON)
        return
    prediction = prediction_named(forms[0].prediction or "v_prediction")
    config = write_schedule(schedule, prediction)
    assert forms[0].matches(config) and read_schedule(config) == (schedule, prediction)
    theirs = getattr(diffusers, config["_class_name"]).from_config(config)
    ours = [schedule.level(t) for t in range(steps)]
    if isinstance(schedule, DiscreteVP):
        np.testing.assert_allclose(theirs.alphas_cumprod.numpy(), [level.alpha**2 for level in ours], rtol=0, atol=1e-6)
    else:
        np.testing.assert_allclose(theirs.sigmas.numpy()[::-1], [level.sigma for level in ours], rtol=0, atol=1e-6)


def test_tables_have_their_length(kind):
    assert kind(num_train_timesteps=50).alphas_cumprod.shape == (50,)
