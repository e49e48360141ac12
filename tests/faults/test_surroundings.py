"""What the caller has switched on for their own work changes no picture: number formats, devices, autocast, modes."""

import contextlib

import numpy as np
import pytest
import torch
from PIL import Image

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.registry import names

SAMPLERS = names("latent_diffusion.samplers")


@contextlib.contextmanager
def default_dtype(dtype):
    old = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(old)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SURROUNDINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast in float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "deterministic": deterministic,
}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
MASK = Image.fromarray(np.eye(16, dtype=np.uint8) * 255)
TASKS = {
    "text": lambda pipe, **more: pipe("a (red:1.3) [apple|car] AND a cat", **more),
    "image to image": lambda pipe, **more: pipe.image_to_image("a cat", image=PICTURE, **more),
    "inpaint": lambda pipe, **more: pipe.inpaint("a cat", image=PICTURE, mask_image=MASK, **more),
    "outpaint": lambda pipe, **more: pipe.outpaint("a cat", image=PICTURE, right=8, **more),
    "hires": lambda pipe, **more: pipe.hires("a cat", height=16, width=16, **more),
    "interpolate": lambda pipe, **more: pipe.interpolate("a cat", frames=3, **{**more, "seed": [1, 2]}),
}


def pixels(out) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in out.images])


@pytest.fixture(scope="module")
def plain(tiny_folder):
    return LatentDiffusionPipeline.from_pretrained(tiny_folder, device="cpu", fast=False)


@pytest.fixture(scope="module")
def expected(tiny_pipeline):
    """What every task draws in plain surroundings."""
    return {task: pixels(draw(tiny_pipeline, num_inference_steps=2, seed=1)) for task, draw in TASKS.items()}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_every_task_draws_the_same_picture(tiny_pipeline, expected, name):
    for task, draw in TASKS.items():
        with SURROUNDINGS[name]():
            assert np.array_equal(pixels(draw(tiny_pipeline, num_inference_steps=2, seed=1)), expected[task]), task


def test_every_task_draws_the_same_picture_without_kernels_of_ours(plain):
    for task, draw in TASKS.items():
        wanted = pixels(draw(plain, num_inference_steps=2, seed=1))
        with SURROUNDINGS["autocast"]():
            assert np.array_equal(pixels(draw(plain, num_inference_steps=2, seed=1)), wanted), task


@pytest.mark.parametrize(("fast", "name"), [*((True, name) for name in list(SURROUNDINGS)[::2]), (False, "bfloat16")])
def test_a_model_loaded_there_draws_the_same_picture(tiny_pipeline, tiny_folder, name, fast):
    expected = pixels(tiny_pipeline("a cat", num_inference_steps=2, seed=1))
    with SURROUNDINGS[name]():
        loaded = LatentDiffusionPipeline.from_pretrained(tiny_folder, device="cpu", fast=fast)
        there = pixels(loaded("a cat", num_inference_steps=2, seed=1))
    assert np.abs(there.astype(int) - expected).max() <= 1
    assert np.array_equal(pixels(loaded("a cat", num_inference_steps=2, seed=1)), there)
    assert {p.dtype for p in loaded.components.text_encoder.parameters()} == {torch.float32}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_the_same_picture(tiny_pipeline, sampler):
    def draw():
        return tiny_pipeline("a cat", sampler=sampler, num_inference_steps=3, seed=1, output_type="latent").images

    expected = draw()
    with default_dtype(torch.float64), torch.device("meta"):
        assert torch.equal(draw(), expected)


OPTIONS = [
    *({"approximate": name} for name in ("tome", "deepcache")),
    *({"guidance": name} for name in ("seg", "pag", "apg", "perp_neg", "threshold")),
    {"guidance_rescale": 0.7},
    {"spacing": "karras"},
    {"variation_seed": 5, "variation_strength": 0.5},
    {"clip_skip": 1, "long_prompt": "truncate"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_draws_the_same_picture(tiny_pipeline, options):
    def draw():
        return tiny_pipeline("a (red:1.3) apple", num_inference_steps=3, seed=1, output_type="latent", **options).images

    expected = draw()
    for dtype in (torch.float64, torch.bfloat16):
        with default_dtype(dtype), torch.device("meta"):
            assert torch.equal(draw(), expected), dtype


def test_a_call_leaves_the_callers_modes_as_they_were(tiny_pipeline):
    with default_dtype(torch.float64), torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16):
        tiny_pipeline("a cat", num_inference_steps=1)
        assert torch.get_default_dtype() == torch.float64 and torch.empty(1).device.type == "meta"
        assert torch.is_autocast_enabled("cpu")
