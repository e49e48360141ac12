"""Names of samplers and spacings, those of other programs among them, and what a folder's scheduler stands for."""

import pytest
import torch

from latent_diffusion.checkpoint.folder.default_sampler import DefaultSampler, default_sampler
from latent_diffusion.diffusion.spacing import SPACINGS
from latent_diffusion.errors import ConfigError
from latent_diffusion.pipeline.regenerate import plan_of_record
from latent_diffusion.provenance.other_names import sampler_of, spacing_of
from latent_diffusion.registry import find, names


@pytest.mark.parametrize(
    "text,name,spacing",
    [
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("DPM++ 2M SDE Exponential", "dpmpp_2m_sde", "exponential"),
        ("DPM++ 2M SDE Polyexponential", "dpmpp_2m_sde", "polyexponential"),
        ("DPM++ SDE Karras", "dpmpp_sde", "karras"),
        ("DPM++ 3M SDE", "dpmpp_3m_sde", None),
        ("Euler a", "euler_ancestral", None),
        ("euler", "euler", None),
        ("LMS Karras", "lms", "karras"),
        ("DPM2 a Karras", "dpm2_ancestral", "karras"),
        ("dpm_2_ancestral", "dpm2_ancestral", None),
        ("dpmpp_2m_k", "dpmpp_2m", "karras"),
        ("PLMS", "pndm", None),
        ("uni_pc_bh2", "unipc", None),
        ("HeunDiscreteScheduler", "heun", None),
        ("SA-Solver", "sa_solver", None),
        ("DDIM", "ddim", None),
    ],
)
def test_names_of_other_programs(text, name, spacing):
    assert sampler_of(text) == (name, spacing)


def test_every_sampler_has_its_own_name_and_aliases():
    ours = names("latent_diffusion.samplers")
    every = [alias for name in ours for alias in (name, *find("latent_diffusion.samplers", name).aliases)]
    assert {sampler_of(alias) for alias in every} == {(name, None) for name in ours}
    assert all(sampler_of(name) == (name, None) for name in ours)
    assert sampler_of("dimm") is None


def test_spacing_names():
    assert all(spacing_of(name, "euler", "ays_sd1") == name for name in SPACINGS)
    for text, name in (
        ("Karras", "karras"),
        ("SGM Uniform", "sgm_uniform"),
        ("normal", "linspace"),
        ("ays", "ays_sdxl"),
    ):
        assert spacing_of(text, "euler", "ays_sdxl") == name
    assert spacing_of("Align Your Steps", "euler", "ays_sd1") == "ays_sd1"
    assert [spacing_of("Automatic", name, "") for name in ("dpmpp_2m", "dpmpp_2m_sde", "euler")] == [
        "karras",
        "exponential",
        "linspace",
    ]
    assert spacing_of("linear", "euler", "ays_sd1") is None


@pytest.mark.parametrize(
    "config,sampler,spacing",
    [
        ({"_class_name": "PNDMScheduler", "skip_prk_steps": True}, "pndm", "leading"),
        ({"_class_name": "EulerDiscreteScheduler"}, "euler", "linspace"),
        ({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}, "euler", "karras"),
        (
            {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"},
            "euler_ancestral",
            "trailing",
        ),
        ({"_class_name": "HeunDiscreteScheduler", "use_beta_sigmas": True}, "heun", "beta_sigma"),
        ({"_class_name": "KDPM2DiscreteScheduler", "use_exponential_sigmas": True}, "dpm2", "exponential"),
        ({"_class_name": "DPMSolverMultistepScheduler"}, "dpmpp_2m", "linspace"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
            "dpmpp_2m_sde",
            "linspace",
        ),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "dpmpp_3m_sde:eta=0", "linspace"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_order": 3}, "unipc:solver_order=3", "linspace"),
        ({"_class_name": "LCMScheduler"}, "lcm", "lcm"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "euler", "linspace"),
    ],
)
def test_a_folder_says_its_sampler(config, sampler, spacing):
    assert default_sampler(config) == DefaultSampler(sampler, spacing)


@pytest.mark.parametrize(
    "config,said",
    [
        ({}, "none named"),
        ({"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler is not among"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"},
            "algorithm_type 'dpmsolver' is not followed",
        ),
        ({"_class_name": "PNDMScheduler"}, "warm-up"),
    ],
)
def test_what_a_folder_says_and_we_do_not_do(config, said):
    found = default_sampler(config)
    assert found.sampler in names("latent_diffusion.samplers") and said in "; ".join(found.unfollowed)


def picture(pipe, **options):
    return pipe("a cat", seed=3, **{"num_inference_steps": 4, "output_type": "latent", **options})


def test_names_decide_the_picture_and_stand_in_the_record(tiny_pipeline):
    out = picture(tiny_pipeline, sampler="DPM++ 2M SDE Karras")
    same = picture(tiny_pipeline, sampler="dpmpp_2m_sde", spacing="karras", eta=1.0)
    assert torch.equal(out.images, same.images)
    assert (out.records[0].sampler, out.records[0].spacing, out.records[0].eta) == ("dpmpp_2m_sde", "karras", 1.0)
    assert not torch.equal(out.images, picture(tiny_pipeline, sampler="dpmpp_2m_sde:eta=0", spacing="karras").images)


def test_fields_after_a_colon(tiny_pipeline):
    once = picture(tiny_pipeline, sampler="restart", num_inference_steps=8, spacing="karras")
    twice = picture(tiny_pipeline, sampler="restart:repeats=2,r_max=3", num_inference_steps=8, spacing="karras")
    assert not torch.equal(once.images, twice.images)
    assert twice.records[0].sampler == "restart:repeats=2,r_max=3"


def test_custom_times_are_those_of_a_spacing(tiny_pipeline):
    wanted = picture(tiny_pipeline, sampler="ddim", spacing="trailing")
    out = picture(tiny_pipeline, sampler="ddim", timesteps=[999, 749, 499, 249], num_inference_steps=None)
    record = out.records[0]
    assert (record.spacing, record.timesteps, record.num_inference_steps) == ("custom", (999.0, 749.0, 499.0, 249.0), 4)
    torch.testing.assert_close(out.images, wanted.images, rtol=0, atol=0)


def test_custom_sigmas_with_and_without_the_last_zero(tiny_pipeline):
    options = {"sampler": "euler", "num_inference_steps": None}
    with_zero = picture(tiny_pipeline, sigmas=[14.6, 3.9, 0.9, 0.0], **options)
    without = picture(tiny_pipeline, sigmas=(14.6, 3.9, 0.9), spacing="custom", **options)
    assert torch.equal(with_zero.images, without.images)
    assert without.records[0].sigmas == (14.6, 3.9, 0.9)
    assert type(without.records[0]).from_json(without.records[0].to_json()) == without.records[0]


@pytest.mark.parametrize(
    "options,said",
    [
        ({"sampler": "DPM++ 2M Karras", "spacing": "exponential"}, "give one"),
        ({"sampler": "unipc:order=3"}, "has no 'order'; it has solver_order"),
        ({"sampler": "unipc:solver_order=x"}, "solver_order 'x' is not a number"),
        ({"sampler": "unipc:solver_order=1.5"}, "not an integer"),
        ({"sampler": "unipc:solver_order=inf"}, "not an integer"),
        ({"sampler": "restart:r_max=nan"}, "not a number"),
        ({"sampler": "sa_solver:tau=inf"}, "out of range"),
        ({"sampler": "ddim:eta=nan"}, "not a number"),
        ({"eta": float("nan")}, "eta nan"),
        ({"spacing_rho": float("nan")}, "not a number"),
        ({"spacing": "karras", "spacing_rho": float("inf")}, "a number above 0"),
        ({"sampler": "unipc:solver_order=9"}, "use 1, 2 or 3"),
        ({"sampler": "unipc:solver_order"}, "no key=value"),
        ({"sampler": "heun:a=1"}, "it has no fields"),
        ({"sampler": "ddim:eta=0.5", "eta": 0.2}, "contradict"),
        ({"sampler": "restart:repeats=-1"}, "repeats"),
        ({"timesteps": [1, 2]}, "strictly falling"),
        ({"timesteps": [2000]}, "999 to 0"),
        ({"timesteps": []}, "1 to 1000 numbers"),
        ({"timesteps": "999"}, "1 to 1000 numbers"),
        ({"timesteps": [float("nan")]}, "strictly falling"),
        ({"sigmas": [1.0, -1.0]}, "strictly falling"),
        ({"sigmas": [5.0], "timesteps": [5]}, "give one of them"),
        ({"sigmas": [5.0], "spacing": "karras"}, "give one of them"),
        ({"spacing": "custom"}, "needs timesteps or sigmas"),
        ({"sigmas": [5.0, 1.0], "num_inference_steps": 3}, "2 custom levels"),
        ({"spacing_rho": "x"}, "not a number"),
        ({"spacing_rho": 7, "spacing": "trailing"}, "only karras, polyexponential"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(tiny_pipeline, options, said):
    with pytest.raises(ConfigError, match=said):
        tiny_pipeline("a cat", seed=1, **{"num_inference_steps": None, **options})


def test_the_level_before_the_last_can_be_left_out(tiny_pipeline):
    options = {"sampler": "dpm2", "spacing": "karras"}
    out = picture(tiny_pipeline, discard_next_to_last=True, **options)
    assert out.records[0].discard_next_to_last
    assert not torch.equal(out.images, picture(tiny_pipeline, **options).images)
    again = plan_of_record(out.records[0]).arguments
    assert torch.equal(tiny_pipeline("a cat", output_type="latent", **again).images, out.images)
    with pytest.raises(ConfigError, match="has no effect"):
        picture(tiny_pipeline, sigmas=[5.0], num_inference_steps=None, discard_next_to_last=True)
    with pytest.raises(ConfigError, match="neither True nor False"):
        picture(tiny_pipeline, discard_next_to_last="no")


@pytest.mark.parametrize(
    "text,name", [("ddim_uniform", "ddim_uniform"), ("DDIM", "ddim_uniform"), ("ays_a1111", "ays_sdxl_a1111")]
)
def test_spacings_of_other_programs(text, name):
    assert spacing_of(text, "euler", "ays_sdxl") == name


def test_restart_is_karras_where_a1111_chooses():
    assert spacing_of("Automatic", "restart", "ays_sd1") == "karras"
