"""Noise law and prediction survive scheduler_config.json, and diffusers reads the same law from it."""

import numpy as np
import pytest

from latent_diffusion.checkpoint.folder.scheduler_config import read_schedule, write_schedule
from latent_diffusion.diffusion.prediction import EPSILON, FLOW, X0, V
from latent_diffusion.errors import CheckpointError
from latent_diffusion.families import emoji, sd1, tiny
from latent_diffusion.schedules.cosine import CosineSchedule
from latent_diffusion.schedules.linear import LinearSchedule
from latent_diffusion.schedules.rectified_flow import RectifiedFlow
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule


@pytest.mark.parametrize("sampler", ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [
        (ScaledLinearSchedule(), EPSILON),
        (LinearSchedule(num_train_timesteps=500), X0),
        (CosineSchedule(), V),
        (ScaledLinearSchedule(zero_terminal_snr=True), V),
    ],
)
def test_round_trip_and_diffusers(schedule, prediction, sampler):
    import diffusers

    config = write_schedule(schedule, prediction, {"_class_name": sampler, "timestep_spacing": "trailing"})
    assert read_schedule(config) == (schedule, prediction)
    theirs = getattr(diffusers, sampler).from_config(config)
    assert theirs.config.timestep_spacing == "trailing"
    assert theirs.config.get("clip_sample", False) is False
    bound = 1e-5  # theirs is a float32 table
    expected = theirs.alphas_cumprod.numpy()
    if schedule.zero_terminal_snr and sampler.startswith("DPM"):
        expected, bound = expected[:-1], 1e-5  # it replaces the last 0 by 2^-24
    assert np.abs(expected - schedule.alphas_cumprod[: len(expected)]).max() <= bound


def test_families_say_the_laws_they_are_trained_with():
    for family in (sd1, emoji, tiny):
        schedule, prediction = read_schedule(family.SCHEDULER)
        assert isinstance(schedule, ScaledLinearSchedule) and prediction.name in ("epsilon", "v_prediction")
        assert write_schedule(schedule, prediction, family.SCHEDULER) == family.SCHEDULER


@pytest.mark.parametrize(
    "sampler",
    [
        {},
        {"_class_name": "FlowMatchHeunDiscreteScheduler"},
        {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True},
    ],
)
def test_rectified_flow_round_trip_and_diffusers(sampler):
    import diffusers

    config = write_schedule(RectifiedFlow(shift=3.0), FLOW, sampler)
    assert read_schedule(config) == (RectifiedFlow(shift=3.0), FLOW)
    theirs = getattr(diffusers, config["_class_name"]).from_config(config)
    assert theirs.config.get("shift", theirs.config.get("flow_shift")) == 3.0


def test_fields_of_another_class_are_not_kept():
    """A flow that is saved over the fields of a DDIM scheduler is read again as that flow, and the other way round."""
    ddim = write_schedule(ScaledLinearSchedule(), V)
    flow = write_schedule(RectifiedFlow(shift=2.0), FLOW, ddim)
    assert flow == {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 2.0}
    assert read_schedule(write_schedule(ScaledLinearSchedule(), V, flow)) == (ScaledLinearSchedule(), V)


def test_flows_that_have_no_name_are_refused():
    with pytest.raises(CheckpointError, match="only with flow_prediction"):
        write_schedule(RectifiedFlow(), V)
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    for wrong in ({"use_dynamic_shifting": True}, {"prediction_type": "epsilon"}, {"shift": 0.0}, {"shift": "x"}):
        with pytest.raises(CheckpointError, match=next(iter(wrong)).split("_")[0]):
            read_schedule(flow | wrong)


def test_an_offset_beyond_the_last_time_is_refused():
    assert read_schedule({"steps_offset": 999})
    with pytest.raises(CheckpointError, match="steps_offset is 1000, a number below num_train_timesteps, 1000"):
        read_schedule({"steps_offset": 1000})
