"""Every impossible argument of a drawing call: refused by name, with what is allowed, before anything is computed.

Rows G01 to G07, G10 and G11 of the reliability matrix; G08, G09 (prompts) and G15 (metadata) are with their parts.
"""

import dataclasses
import re

import numpy as np
import pytest
import torch
from PIL import Image

from latent_diffusion.cli.main import main
from latent_diffusion.errors import ConfigError, LatentDiffusionWarning

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def refused(tiny_pipeline, monkeypatch):
    """Draw with these arguments; return the one line that refuses them. The U-Net must not be asked."""
    unet = tiny_pipeline.components.unet
    monkeypatch.setattr(type(unet), "forward", lambda *_: pytest.fail("computed before the arguments were checked"))

    def draw(prompt="a cat", **arguments):
        with pytest.raises(ConfigError) as error:
            tiny_pipeline(prompt, **({"num_inference_steps": 2} | arguments))
        assert "\n" not in str(error.value)
        return str(error.value)

    return draw


@pytest.mark.parametrize("side", ["height", "width"])
@pytest.mark.parametrize("value", [0, -8, 7, 513, 2**31, 512.5, "512", NAN, True])
def test_g01_sizes(refused, side, value):
    assert f"{side} {value!r}" in refused(**{side: value})


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_images_per_prompt": 10**9},
        {"prompt": ["a cat"] * 1000, "num_images_per_prompt": 10**6},
        {"height": 8192, "width": 8192, "num_inference_steps": 1000, "num_images_per_prompt": 100},
        {"prompt": None, "prompt_embeds": torch.zeros(1, 77, 32), "num_images_per_prompt": 10**12},
    ],
    ids=lambda a: str(list(a.values()))[:40],
)
def test_g02_more_than_anyone_can_want(refused, arguments, monkeypatch):
    def compute(*arguments, **named):
        raise AssertionError("a network was called")

    monkeypatch.setattr(torch.nn.Module, "__call__", compute)
    assert "too much for one call; at most" in refused(**arguments)


@pytest.mark.parametrize("steps", [0, -1, 1001, 10**9, 2.5, "20", True])
def test_g03_steps(refused, steps):
    assert f"num_inference_steps {steps!r}" in refused(num_inference_steps=steps)


@pytest.mark.parametrize("value", [-1, 1e9, NAN, INF, "7", True])
def test_g04_guidance(refused, value):
    assert f"guidance_scale {value!r}" in refused(guidance_scale=value)


def test_g04_one_is_the_prompt_alone_and_zero_the_negative_prompt(tiny_pipeline):
    options = {"num_inference_steps": 2, "seed": 1, "output_type": "pt"}

    def draw(prompt, scale, negative=None):
        return tiny_pipeline(prompt, guidance_scale=scale, negative_prompt=negative, **options).images

    assert torch.equal(draw("a cat", 1.0), draw("a cat", 1.0, "blurry"))
    assert (draw("a cat", 0.0, "blurry") - draw("blurry", 1.0)).abs().max() <= 1e-5


@pytest.mark.parametrize("seed", [-1, 2**32, 2**53 + 1, 2**64, 1.5, "a", True, [1, 2], [1.5], []])
def test_g05_seeds(refused, seed):
    assert "seed" in refused(seed=seed)


def test_g05_no_seed_draws_one_and_says_which(tiny_pipeline):
    out = tiny_pipeline("a cat", num_inference_steps=1, output_type="latent")
    assert 0 <= out.seeds[0] < 2**32 and out.records[0].seed == out.seeds[0]
    again = tiny_pipeline("a cat", num_inference_steps=1, output_type="latent", seed=out.seeds[0])
    assert torch.equal(out.images, again.images)


@pytest.mark.parametrize("strength", [-0.1, 1.1, NAN, "half", 0.01, True])
@pytest.mark.parametrize("task", ["inpaint", "image_to_image"])
def test_g06_strength(tiny_pipeline, task, strength):
    image = Image.new("RGB", (16, 16), (200, 30, 30))
    pictures = {"image": image} | ({"mask_image": Image.new("L", (16, 16), 255)} if task == "inpaint" else {})
    with pytest.raises(ConfigError, match="strength"):
        getattr(tiny_pipeline, task)("a cat", **pictures, strength=strength, num_inference_steps=4)


def test_g06_strength_zero_returns_the_input(tiny_pipeline):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    with pytest.warns(LatentDiffusionWarning, match="strength is 0"):
        out = tiny_pipeline.inpaint("a cat", image=image, mask_image=Image.new("L", (16, 16), 255), strength=0.0)
    assert np.array_equal(np.asarray(out.images[0]), np.asarray(image))


@pytest.mark.parametrize("sampler", ["dimm", "DDIMM", "__class__", "../ddim", "", 3])
def test_g07_samplers(refused, sampler):
    line = refused(sampler=sampler)
    assert "sampler" in line and (not isinstance(sampler, str) or ("ddim" in line and "unipc" in line))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": ["a", "b"], "negative_prompt": ["c"] * 3}, ["3 negative prompts", "2 prompts"]),
        ({"prompt": ["a", "b"], "seed": [1, 2, 3]}, ["3", "2 images"]),
        ({"prompt": ["a"], "num_images_per_prompt": 2, "seed": [1]}, ["1", "2 images"]),
        ({"prompt": ["a", "b"], "generator": [torch.Generator()]}, ["1", "2"]),
    ],
)
def test_g10_lists_of_different_lengths(refused, arguments, words):
    line = refused(**arguments)
    assert all(word in line for word in words)


def test_g11_no_prompt_reaches_a_file_name(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompts = ["a/b", "..", "../../x", "CON", "-x", "a" * 300, "~", "$(ls)", "a\nb"]
    arguments = ["--model", str(tiny_folder), "--steps", "1", "--seed", "5", "--guidance-scale", "1"]
    assert main(["generate", *arguments, "--", *prompts]) == 0
    written = [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) == len(prompts)
    assert all(re.fullmatch(r"outputs/\d{8}-\d{6}-5-\d{4}\.png", name) for name in written)
    assert {file.parent for file in tmp_path.parent.rglob("*-5-*.png")} == {tmp_path / "outputs"}


def test_settings_are_frozen(tiny_pipeline):
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_pipeline.engine.machine.dtype = torch.float16
