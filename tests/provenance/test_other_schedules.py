"""The noise levels that A1111 and ComfyUI visit under the names of their samplers and schedules."""

import json

import numpy as np
import pytest

from latent_diffusion.pipeline.regenerate import plan_of_found
from latent_diffusion.provenance.foreign import read_found

SAMPLING = ("num_inference_steps", "sampler", "spacing", "timesteps", "discard_next_to_last")


@pytest.fixture(scope="module")
def pipe(tiny_family):
    from latent_diffusion import LatentDiffusionPipeline

    return LatentDiffusionPipeline.from_pretrained(tiny_family("sd1"), device="cpu")


def of_a1111(sampler, schedule, steps=10):
    fields = f"Steps: {steps}, Sampler: {sampler}, Schedule type: {schedule}, Seed: 1, Size: 16x16, RNG: CPU"
    return plan_of_found(read_found({}, f"a cat\n{fields}"))


def of_comfyui(sampler, scheduler, steps=10, **more):
    inputs = {"seed": 1, "steps": steps, "sampler_name": sampler, "scheduler": scheduler, "positive": ["6", 0], **more}
    nodes = {"3": {"class_type": "KSampler", "inputs": inputs}, "6": {"class_type": "X", "inputs": {"text": "a cat"}}}
    return plan_of_found(read_found({"prompt": json.dumps(nodes)}, None))


def visited(pipe, plan):
    options = {name: plan.arguments[name] for name in SAMPLING if name in plan.arguments}
    levels = pipe.engine.settings(options).levels(pipe.components)
    return [level.sigma / level.alpha for level in levels], [level.t for level in levels[:-1]]


def ends(pipe):
    """Return the least and the largest noise level of the model."""
    schedule = pipe.components.schedule
    levels = schedule.level(0), schedule.level(schedule.num_train_timesteps - 1)
    return [level.sigma / level.alpha for level in levels]


def karras(low, high, count):
    shares = np.linspace(0, 1, count)
    return (high ** (1 / 7) + shares * (low ** (1 / 7) - high ** (1 / 7))) ** 7


@pytest.mark.parametrize(
    "plan",
    [
        of_a1111("DPM2", "Karras"), of_a1111("DPM2 a", "Karras"), of_a1111("DPM++ 3M SDE", "Karras"),
        of_comfyui("dpm_2", "karras"), of_comfyui("dpm_2_ancestral", "karras"), of_comfyui("uni_pc_bh2", "karras"),
    ],
)  # fmt: skip
def test_the_level_before_the_last_is_left_out(pipe, plan):
    """Of 11 sigmas and 0, the 11th is dropped."""
    found, _ = visited(pipe, plan)
    assert np.allclose(found, [*karras(*ends(pipe), 11)[:-1], 0.0], rtol=1e-5)


@pytest.mark.parametrize("plan", [of_a1111("Euler", "Karras"), of_comfyui("dpmpp_3m_sde", "karras")])
def test_other_samplers_visit_every_level(pipe, plan):
    found, _ = visited(pipe, plan)
    assert np.allclose(found, [*karras(*ends(pipe), 10), 0.0], rtol=1e-5)


@pytest.mark.parametrize("steps", [10, 20])
def test_kl_optimal_of_a1111_ends_at_the_least_level(pipe, steps):
    low, high = ends(pipe)
    shares = np.arange(steps + 1) / steps
    expected = np.tan(shares * np.arctan(low) + (1 - shares) * np.arctan(high))
    assert np.allclose(visited(pipe, of_a1111("Euler", "KL Optimal", steps))[0], expected, rtol=1e-4)


def test_align_your_steps_of_a1111_visits_the_least_level(pipe):
    found, _ = visited(pipe, of_a1111("Euler", "Align Your Steps", 10))
    assert len(found) == 11 and found[-1] == 0.0
    assert abs(found[-2] - 0.029) < 1e-3
    assert visited(pipe, of_comfyui("euler", "normal"))[0][-1] == 0.0


@pytest.mark.parametrize(("steps", "count", "noisiest"), [(30, 31, 991), (20, 20, 951), (17, 18, 987)])
def test_ddim_uniform_visits_as_many_times_as_there(pipe, steps, count, noisiest):
    _, times = visited(pipe, of_comfyui("ddim", "ddim_uniform", steps))
    assert (len(times), times[0], times[-1]) == (count, noisiest, 1.0)


def test_ddim_uniform_from_the_middle_runs_as_many_steps_as_there():
    """30 steps at denoise 0.5 are the last 30 of ddim_uniform's 63 times for 60."""
    latents = {"latent_image": ["5", 0], "denoise": 0.5}
    inputs = {
        "seed": 1,
        "steps": 30,
        "sampler_name": "ddim",
        "scheduler": "ddim_uniform",
        "positive": ["6", 0],
        **latents,
    }
    nodes = {
        "3": {"class_type": "KSampler", "inputs": inputs},
        "5": {"class_type": "VAEEncode", "inputs": {"pixels": ["7", 0]}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}},
        "7": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
    }
    plan = plan_of_found(read_found({"prompt": json.dumps(nodes)}, None))
    times = plan.arguments["timesteps"]
    assert times == tuple(float(t) for t in range(1, 1000, 1000 // 60))[::-1]
    assert int(len(times) * plan.arguments["strength"]) == 30


def test_restart_of_a1111_is_karras_where_nothing_is_said(pipe):
    found, _ = visited(pipe, of_a1111("Restart", "Automatic"))
    assert np.allclose(found, [*karras(*ends(pipe), 10), 0.0], rtol=1e-5)


def test_third_order_of_invokeai():
    found = read_found({"invokeai_metadata": json.dumps({"positive_prompt": "a", "scheduler": "dpmpp_3m_k"})}, None)
    assert (found.options["sampler"], found.options["spacing"]) == ("dpmpp_3m_sde:eta=0", "karras")
