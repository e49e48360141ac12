"""Text to images: batches, threads, outputs, and what is refused."""

import copy
import dataclasses
import inspect
import json
import shutil
import threading

import numpy as np
import pytest
import torch

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.errors import CheckpointError, ConfigError, DivergedError, LatentDiffusionWarning, ResourceError
from latent_diffusion.options.call import Options
from latent_diffusion.registry import names

# one of each kind: noisy, several levels of history, two evaluations a step; the contract of samplers has them all
KINDS = ["ddpm", "dpmpp_2m", "dpm2"]
PROMPTS = ["a red apple", "a cat", "", "the sun, drawn"]


def draw(pipe, prompts="a red apple", **arguments):
    return pipe(prompts, **({"num_inference_steps": 4, "seed": 3, "output_type": "latent"} | arguments))


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 1.0), *((sampler, 0.0) for sampler in KINDS)])
def test_a_batch_equals_its_images_alone(tiny_pipeline, sampler, eta):
    arguments = {"sampler": sampler, "eta": eta, "num_inference_steps": 5, "output_type": "pt"}
    batch = tiny_pipeline(PROMPTS, seed=11, **arguments)
    assert batch.seeds == [11, 12, 13, 14]
    for prompt, seed, image in zip(PROMPTS, batch.seeds, batch.images, strict=True):
        alone = tiny_pipeline(prompt, seed=seed, **arguments).images[0]
        assert (alone - image).abs().max() <= 1e-4


def test_images_of_one_prompt_come_together(tiny_pipeline):
    out = draw(tiny_pipeline, ["a", "b"], num_images_per_prompt=2, negative_prompt=["c", "d"])
    assert [(r.prompt, r.negative_prompt, r.seed) for r in out.records] == [
        ("a", "c", 3), ("a", "c", 4), ("b", "d", 5), ("b", "d", 6)
    ]  # fmt: skip
    assert (out.images[0] - out.images[1]).abs().max() > 0.1


def test_four_threads_share_one_pipeline(tiny_pipeline):
    tasks = [(sampler, seed) for sampler in KINDS for seed in (1, 2, 3, 4)]
    alone = [draw(tiny_pipeline, sampler=s, seed=seed).images for s, seed in tasks]
    together: dict[int, torch.Tensor] = {}

    def work(first):
        for k in range(first, len(tasks), 4):
            together[k] = draw(tiny_pipeline, sampler=tasks[k][0], seed=tasks[k][1]).images

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(together[k], latents) for k, latents in enumerate(alone))


def test_output_types_agree(tiny_pipeline):
    tensor = draw(tiny_pipeline, output_type="pt").images
    array = draw(tiny_pipeline, output_type="np").images
    picture = draw(tiny_pipeline, output_type="pil").images[0]
    side = tiny_pipeline.defaults.height
    assert tensor.shape == (1, 3, side, side) and picture.size == (side, side)
    assert tensor.min() >= 0 and tensor.max() <= 1
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert np.abs(np.asarray(picture) / 255 - array[0]).max() <= 0.51 / 255


def test_given_latents_and_embeddings_are_used(tiny_pipeline):
    plain = draw(tiny_pipeline)
    factor = tiny_pipeline.components.autoencoder.factor
    side, channels = tiny_pipeline.defaults.height // factor, tiny_pipeline.components.unet.config.in_channels
    noise = torch.randn((1, channels, side, side), generator=torch.Generator().manual_seed(3))
    given = draw(tiny_pipeline, latents=noise, seed=99)
    assert torch.equal(given.images, plain.images)
    assert given.records[0].initial == "latents"
    encode = tiny_pipeline.components.text_encoder
    states, empty = encode(["a red apple"]).context, encode([""]).context
    embedded = draw(tiny_pipeline, None, prompt_embeds=states, negative_prompt_embeds=empty)
    assert torch.equal(embedded.images, plain.images)
    assert embedded.records[0].prompt is None
    assert torch.equal(draw(tiny_pipeline, seed=None, generator=torch.Generator().manual_seed(3)).images, plain.images)


def test_other_sizes_than_the_models(tiny_pipeline):
    out = tiny_pipeline("a cat", height=24, width=40, num_inference_steps=1, seed=0)
    assert out.images[0].size == (40, 24)
    assert (out.records[0].width, out.records[0].height) == (40, 24)


def test_guidance_one_ignores_the_negative_prompt_and_zero_the_prompt(tiny_pipeline):
    one = [draw(tiny_pipeline, guidance_scale=1, negative_prompt=n).images for n in (None, "blurry")]
    assert torch.equal(*one)
    zero = [draw(tiny_pipeline, p, guidance_scale=0).images for p in ("a cat", "the sun")]
    assert torch.equal(*zero)
    assert not torch.equal(one[0], zero[0])
    assert not torch.equal(draw(tiny_pipeline, guidance_rescale=0.7).images, draw(tiny_pipeline).images)


def test_on_step_sees_every_step_and_can_stop(tiny_pipeline):
    seen = []
    assert not draw(tiny_pipeline, on_step=lambda step: seen.append(step.index)).stopped
    assert seen == [0, 1, 2, 3]
    out = draw(tiny_pipeline, on_step=lambda step: step.index < 1, output_type="pil")
    assert out.stopped and out.records[0].stopped_after == 2 and out.images


def test_one_step_and_all_steps(tiny_pipeline):
    for sampler in names("latent_diffusion.samplers"):
        assert draw(tiny_pipeline, sampler=sampler, num_inference_steps=1).images.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 500}, "height 500 is not a multiple of 8; use 496 or 504"),
        ({"width": 7}, "width 7"),
        ({"width": 0}, "width 0"),
        ({"height": -8}, "height -8"),
        ({"height": 2**31}, "height 2147483648"),
        ({"height": 512.5}, r"height 512\.5"),
        ({"height": "512"}, "height '512'"),
        ({"num_inference_steps": 0}, "num_inference_steps 0 .* from 1 to 1000"),
        ({"num_inference_steps": 1001}, "from 1 to 1000"),
        ({"guidance_scale": -1}, "guidance_scale -1"),
        ({"guidance_scale": float("nan")}, "guidance_scale nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale inf"),
        ({"guidance_scale": 1e9}, "from 0 to 100"),
        ({"guidance_rescale": 2}, "guidance_rescale 2"),
        ({"sampler": "dimm"}, r"unknown sampler 'dimm'; there are .*ddim, ddpm, .*unipc \(did you mean 'ddim'\?\)"),
        ({"sampler": "__class__"}, "unknown sampler"),
        ({"sampler": 3}, "sampler 3"),
        ({"spacing": "linear"}, "unknown spacing 'linear'"),
        ({"sampler": "ddpm", "eta": 0.5}, "'ddpm' has no eta"),
        ({"eta": 1.5}, "eta 1.5"),
        ({"clip_skip": -1}, "clip_skip -1"),
        ({"clip_skip": 50}, "clip_skip"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt 0"),
        ({"seed": 2**32}, "seed 4294967296 is out of range"),
        ({"seed": [1, 2]}, "2 entries for 1 images"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"prompts": []}, "empty list"),
        ({"prompts": None}, "`prompt` or `prompt_embeds`"),
        ({"prompts": [3]}, "holds 3"),
        ({"prompts": "a" * 10_001}, "at most 10000"),
        ({"prompts": "\ud800"}, "surrogate"),
        ({"prompt_embeds": torch.zeros(1, 77, 32)}, "exclude each other"),
        ({"prompts": None, "prompt_embeds": torch.full((1, 77, 32), torch.nan)}, "finite"),
        ({"latents": torch.zeros(1, 4, 8)}, "latents must be"),
        ({"latents": torch.zeros(1, 4, 8, 8, device="meta")}, "latents are on the device meta"),
        ({"latents": torch.zeros(2, 4, 8, 8)}, "latents must be"),
        ({"latents": torch.zeros(1, 4, 8, 8), "height": 512}, "latents are for"),
        ({"output_type": "jpg"}, "unknown output_type 'jpg'; there are pil, np, pt, latent"),
    ],
)
def test_impossible_arguments_are_refused(tiny_pipeline, arguments, message):
    with pytest.raises(ConfigError, match=message):
        draw(tiny_pipeline, **arguments)


@pytest.mark.parametrize("prompt", ["\0", "مرحبا", "<|endoftext|>", "(" * 10_000, "\n", "🍎" * 500])
def test_strange_prompts_are_prompts(tiny_pipeline, prompt, recwarn):
    assert draw(tiny_pipeline, prompt, num_inference_steps=1).images.isfinite().all()


def with_nan(pipe, part):
    """The pipeline with one weight of a part broken; the shared parts stay whole."""
    broken = copy.deepcopy(getattr(pipe.components, part))
    with torch.no_grad():
        list(broken.parameters())[-1].flatten()[0] = torch.nan
    return LatentDiffusionPipeline(dataclasses.replace(pipe.components, **{part: broken}), device="cpu")


@pytest.mark.parametrize("part", ["unet", "autoencoder"])
def test_a_nan_is_an_error_and_no_black_picture(tiny_pipeline, part):
    with pytest.raises(DivergedError, match="not finite for image 0, 1"):
        draw(with_nan(tiny_pipeline, part), ["a", "b"], output_type="pil")


def test_half_precision_runs_and_stays_close(tiny_folder, tiny_pipeline):
    half = LatentDiffusionPipeline.from_pretrained(tiny_folder, device="cpu", dtype="bfloat16")
    out = draw(half)
    assert out.records[0].dtype == "bfloat16" and out.images.dtype == torch.float32
    exact = draw(tiny_pipeline).images
    assert (out.images - exact).abs().max() < 0.1 * exact.abs().max()


def test_models_and_devices_that_are_not_there(tiny_folder, tmp_path):
    load = LatentDiffusionPipeline.from_pretrained
    with pytest.raises(CheckpointError, match="no model 'emojy'"):
        load("emojy")
    with pytest.raises(CheckpointError, match=r"no model_index\.json"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="unknown device 'gpu'"):
        load(tiny_folder, device="gpu")
    with pytest.raises(ResourceError, match="does not exist"):
        load(tiny_folder, device="cuda:99")
    with pytest.raises(ConfigError, match="unknown dtype 'float8'"):
        load(tiny_folder, dtype="float8")


def test_a_saved_model_makes_the_same_pictures(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path / "copy")
    again = LatentDiffusionPipeline.from_pretrained(tmp_path / "copy", device="cpu")
    assert torch.equal(draw(again).images, draw(tiny_pipeline).images)


def test_argument_names_are_diffusers_names():
    from diffusers import StableDiffusionPipeline

    theirs = set(inspect.signature(StableDiffusionPipeline.__call__).parameters)
    ours = (
        set(inspect.signature(LatentDiffusionPipeline.__call__).parameters) - {"options"}
        | Options.__annotations__.keys()
    )
    callbacks = {"callback_on_step_end", "callback_on_step_end_tensor_inputs", "kwargs", "return_dict"}
    adapters = {"cross_attention_kwargs", "ip_adapter_image", "ip_adapter_image_embeds"}
    assert theirs - ours - callbacks - adapters <= {"timesteps", "sigmas"}


def test_an_unknown_argument_names_the_nearest(tiny_pipeline):
    with pytest.raises(ConfigError, match=r"'guidance_scal'.*guidance_scale"):
        tiny_pipeline("x", guidance_scal=3.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": 7},
        {"prompt": "x", "negative_prompt": 7},
        {"prompt": "x", "generator": 7},
        {"prompt": "x", "generator": ["a"]},
        {"prompt": None, "prompt_embeds": [[1.0]]},
        {"prompt": None, "prompt_embeds": torch.zeros(0, 77, 32)},
        {"prompt": None, "prompt_embeds": torch.zeros(1, 77, 5)},
        {"prompt": "x", "latents": [1.0]},
    ],
    ids=str,
)
def test_arguments_of_a_wrong_type_are_named(tiny_pipeline, wrong):
    with pytest.raises(ConfigError, match=next(reversed(wrong))):
        tiny_pipeline(num_inference_steps=1, **wrong)


def test_a_sampler_we_do_not_have_is_said(tiny_folder, tmp_path):
    copy = shutil.copytree(tiny_folder, tmp_path / "edm")
    file = copy / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "EDMEulerScheduler"}))
    index = copy / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", "EDMEulerScheduler"]}))
    with pytest.warns(LatentDiffusionWarning, match="EDMEulerScheduler is not among"):
        assert LatentDiffusionPipeline.from_pretrained(copy).defaults.sampler == "dpmpp_2m"
