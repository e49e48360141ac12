"""The whole pipeline with guidance against diffusers' `StableDiffusionPipeline`, from one folder and one noise.

Bound 1e-4 on final latents of unit spread: float32 sums are ordered differently in the two networks, and guidance
amplifies that. A random network's latents spread several times wider, so the error is measured in units of theirs.
"""

import json
import shutil

import numpy as np
import pytest
import torch

from latent_diffusion import LatentDiffusionPipeline

BOUND = 1e-4
STEPS = 5  # divides 1000: diffusers' DDIM steps by 1000 // steps whatever the spacing
PROMPTS, NEGATIVE = ["a red apple", "the sun"], ["a blue car", ""]
SDE = {"timestep_spacing": "linspace", "algorithm_type": "sde-dpmsolver++"}
CASES = {
    # our sampler, spacing, eta -> diffusers' scheduler and what it is told
    "ddim": ("ddim", "leading", 0.0, "DDIMScheduler", {"timestep_spacing": "leading"}),
    "ddim-eta": ("ddim", "leading", 1.0, "DDIMScheduler", {"timestep_spacing": "leading"}),
    "ddim-trailing": ("ddim", "trailing", 0.0, "DDIMScheduler", {"timestep_spacing": "trailing"}),
    "ddpm": ("ddpm", "leading", 0.0, "DDPMScheduler", {"timestep_spacing": "leading"}),
    "dpmpp_2m": ("dpmpp_2m", "linspace", 0.0, "DPMSolverMultistepScheduler", {"timestep_spacing": "linspace"}),
    "dpmpp_2m-karras": ("dpmpp_2m", "karras", 0.0, "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("unipc", "trailing", None, "UniPCMultistepScheduler", {"timestep_spacing": "trailing"}),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", "linspace", None, "DPMSolverMultistepScheduler", SDE),
    "euler": ("euler", "leading", None, "EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
    "euler_a": ("Euler a", "leading", None, "EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading"}),
    "heun": ("heun", "leading", None, "HeunDiscreteScheduler", {"timestep_spacing": "leading"}),
    "dpm2_a": ("DPM2 a", "leading", None, "KDPM2AncestralDiscreteScheduler", {"timestep_spacing": "leading"}),
}


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def folder(request, tiny_folder, tmp_path_factory):
    """The tiny folder, once for each prediction."""
    copy = shutil.copytree(tiny_folder, tmp_path_factory.mktemp(request.param) / "tiny")
    file = copy / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text()) | {"prediction_type": request.param, "clip_sample": False}
    file.write_text(json.dumps(config))
    return copy


@pytest.fixture(scope="module")
def ours(folder):
    return LatentDiffusionPipeline.from_pretrained(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def theirs(folder):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def reschedule(pipe, scheduler, options):
    """Give a diffusers pipeline another scheduler with the same noise law."""
    import diffusers

    keep = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type", "steps_offset")
    law = {key: pipe.scheduler.config[key] for key in keep if key in pipe.scheduler.config}
    own = {
        "DDIMScheduler": {"clip_sample": False, "set_alpha_to_one": False},  # as in the folder
        "DDPMScheduler": {"clip_sample": False},
    }
    pipe.scheduler = getattr(diffusers, scheduler)(**law, **own.get(scheduler, {}), **options)


def draw_theirs(pipe, eta=0.0, **arguments):
    generators = [torch.Generator().manual_seed(seed) for seed in (21, 22)]
    call = {"negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": 7.5, "output_type": "latent"}
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    return pipe(PROMPTS, height=side, width=side, generator=generators, eta=eta, **(call | arguments)).images


def error(found, expected):
    return ((found - expected).abs().max() / expected.std().clamp_min(1)).item()


def draw_ours(pipe, **arguments):
    call = {"negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": 7.5, "output_type": "latent"}
    return pipe(PROMPTS, seed=21, **(call | arguments)).images


@pytest.mark.parametrize("turn", range(len(CASES) // 2))
def test_final_latents(ours, theirs, turn):
    """Every second sampler predicts noise, the others velocities; `tests/parity` has each with both."""
    prediction = theirs.scheduler.config.prediction_type
    sampler, spacing, eta, scheduler, options = list(CASES.values())[2 * turn + (prediction == "epsilon")]
    reschedule(theirs, scheduler, options)
    expected = draw_theirs(theirs, eta or 0.0)
    assert expected.abs().max() > 0.5, "the pictures are not all alike"
    found = draw_ours(ours, sampler=sampler, spacing=spacing, eta=eta)
    assert error(found, expected) <= BOUND


@pytest.mark.parametrize("arguments", [{"guidance_scale": 1.0}, {"guidance_rescale": 0.7}])
def test_other_arguments_mean_the_same(ours, theirs, arguments):
    reschedule(theirs, "DDIMScheduler", {"timestep_spacing": "leading"})
    found = draw_ours(ours, sampler="ddim", spacing="leading", **arguments)
    assert error(found, draw_theirs(theirs, **arguments)) <= BOUND


def test_the_folders_own_sampler_is_the_default(ours, theirs, folder):
    from diffusers import DDIMScheduler

    theirs.scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    assert error(draw_ours(ours), draw_theirs(theirs)) <= BOUND


def test_images_and_their_rounding(ours, theirs):
    reschedule(theirs, "DDIMScheduler", {"timestep_spacing": "leading"})
    expected = draw_theirs(theirs, output_type="pil")
    found = draw_ours(ours, sampler="ddim", spacing="leading", output_type="pil")
    for a, b in zip(found, expected, strict=True):
        assert np.abs(np.asarray(a).astype(int) - np.asarray(b)).max() <= 1


def test_to_diffusers_shares_the_weights_and_draws_the_same(ours):
    pipe = ours.to_diffusers()
    pipe.set_progress_bar_config(disable=True)
    assert error(draw_theirs(pipe), draw_ours(ours)) <= BOUND
    text = ours.components.text_encoder.model
    unet, autoencoder = ours.components.unet, ours.components.autoencoder
    for network, part in ((unet, pipe.unet), (autoencoder, pipe.vae), (text, pipe.text_encoder)):
        mine = {name: parameter.data_ptr() for name, parameter in network.named_parameters()}
        # transformers before 5.2 has one more name before those of the text encoder
        assert {n.removeprefix("text_model."): p.data_ptr() for n, p in part.named_parameters()} == mine
    assert pipe.scheduler.config.prediction_type == ours.components.prediction.name


def test_what_we_save_opens_in_diffusers(ours, tmp_path):
    from diffusers import StableDiffusionPipeline

    ours.save_pretrained(tmp_path / "saved")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "saved", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert error(draw_theirs(pipe), draw_ours(ours)) <= BOUND
