"""A folder's default sampler: which scheduler diffusers makes of its two files, and the times that are visited."""

import json
import warnings

import pytest

from latent_diffusion.checkpoint.folder.default_sampler import default_sampler, final_level, with_class_defaults
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder
from latent_diffusion.checkpoint.folder.scheduler_config import read_schedule
from latent_diffusion.diffusion.spacing import levels, times
from latent_diffusion.errors import LatentDiffusionWarning
from latent_diffusion.registry import find
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def opened(folder):
    """The parts, and the warnings of opening them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        components = load_folder(folder)
    return components, [str(w.message) for w in caught if issubclass(w.category, LatentDiffusionWarning)]


@pytest.mark.parametrize("steps,wanted", [(4, [999, 759, 499, 259]), (2, [999, 499]), (1, [999])])
@pytest.mark.parametrize("kind", ["LCMScheduler", "TCDScheduler"])
def test_consistency_models_start_at_their_own_times(kind, steps, wanted):
    """diffusers always writes `timestep_spacing: leading` for these classes and never reads it."""
    config = {"_class_name": kind, "timestep_spacing": "leading", "steps_offset": 1}
    found = default_sampler(config)
    assert (found.spacing, found.unfollowed) == ("lcm", ())
    assert times(found.spacing, steps, 1000) == wanted


def test_more_steps_than_a_consistency_model_was_distilled_at():
    for steps in (51, 60, 999, 1000):
        found = times("lcm", steps, 1000)
        assert len(found) == steps and found[0] == 999 and found[-1] >= 0


def test_fields_that_the_class_does_not_read_have_no_effect():
    """As in diffusers: the file of an Euler scheduler under the class name of another."""
    euler = {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min", "interpolation_type": "log_linear"}
    found = default_sampler({"_class_name": "DDIMScheduler", **euler})
    assert (found.sampler, found.spacing, found.unfollowed) == ("ddim", "leading", ())


def test_absent_fields_have_the_defaults_of_the_class():
    """LCM's noise law is scaled_linear from 0.00085, PNDM ends at time 0."""
    schedule, _ = read_schedule({"_class_name": "LCMScheduler"})
    assert schedule == ScaledLinearSchedule()
    assert final_level({"_class_name": "PNDMScheduler"}, find("latent_diffusion.samplers", "pndm")) == "first"
    assert final_level({"_class_name": "PNDMScheduler"}, find("latent_diffusion.samplers", "euler")) == "zero"
    assert with_class_defaults({"_class_name": "DDIMScheduler"})["timestep_spacing"] == "leading"


@pytest.mark.parametrize(
    "changes,named",
    [
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 1}, "solver_order 1"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True}, "use_lu_lambdas True"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_order": 9}, "solver_order 9"),
        ({"_class_name": "UniPCMultistepScheduler", "disable_corrector": [0]}, r"disable_corrector \[0\]"),
        ({"_class_name": "EulerDiscreteScheduler", "a_new_flag": 3}, "a_new_flag is unknown"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "new"}, "timestep_spacing 'new'"),
    ],
)
def test_what_is_not_followed_is_named_when_the_model_is_opened(tiny_folder, tmp_path, changes, named):
    from latent_diffusion import LatentDiffusionPipeline

    folder = copied(tiny_folder, tmp_path)
    config = folder / "scheduler" / "scheduler_config.json"
    edit(config, **changes)
    edit(folder / "model_index.json", scheduler=["diffusers", changes["_class_name"]])
    with pytest.warns(LatentDiffusionWarning, match=named):
        LatentDiffusionPipeline.from_pretrained(folder)


def copied(folder, tmp_path):
    import shutil

    return shutil.copytree(folder, tmp_path / "model")


def test_the_class_of_model_index_goes_first(tiny_folder, tmp_path):
    """As in diffusers; and it is said."""
    folder = copied(tiny_folder, tmp_path)
    edit(
        folder / "scheduler" / "scheduler_config.json",
        _class_name="EulerDiscreteScheduler",
        use_karras_sigmas=True,
        timestep_spacing="leading",
    )
    components, said = opened(folder)
    found = default_sampler(components.scheduler_config)
    assert (found.sampler, found.spacing) == ("ddim", "leading")
    assert any("EulerDiscreteScheduler; using DDIMScheduler" in text for text in said)


@pytest.mark.parametrize("kind,offset", [("StableDiffusionPipeline", 1), ("StableDiffusionInstructPix2PixPipeline", 0)])
def test_steps_offset_of_stable_diffusion_is_one(tiny_folder, tmp_path, kind, offset):
    """StableDiffusionPipeline of diffusers takes 1 whatever the file contains; others read the file."""
    folder = copied(tiny_folder, tmp_path)
    edit(folder / "scheduler" / "scheduler_config.json", steps_offset=0)
    edit(folder / "model_index.json", _class_name=kind)
    components, said = opened(folder)
    assert components.scheduler_config["steps_offset"] == offset
    assert bool(offset) == any("steps_offset 0 is used as 1" in text for text in said)
    first = levels(components.schedule, "leading", 5, steps_offset=components.scheduler_config["steps_offset"])[0]
    assert first.t == 800 + offset
