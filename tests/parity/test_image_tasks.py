"""Image to image and inpainting by blending, whole calls, against diffusers' pipelines on the same weights and noise.

Both get the same latents of the picture (diffusers would draw from their posterior, we take its mean). Bound 1e-4 on
final latents, in units of their spread.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.data.pictures.images import to_tensor

BOUND = 1e-4
PROMPT, NEGATIVE = "a red apple", "a blue car"
CALL = {"num_inference_steps": 10, "guidance_scale": 6.0, "negative_prompt": NEGATIVE}
OURS = {"sampler": "ddim", "spacing": "leading", "seed": [21, 22], "num_images_per_prompt": 2}


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def pair(folder, task):
    """Our pipeline and diffusers' for a task, of one folder."""
    import diffusers

    theirs = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    law = {k: theirs.scheduler.config[k] for k in ("beta_start", "beta_end", "beta_schedule", "prediction_type")}
    theirs = getattr(diffusers, f"AutoPipelineFor{task}").from_pipe(theirs)
    theirs.scheduler = diffusers.DDIMScheduler(**law, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    theirs.set_progress_bar_config(disable=True)
    return LatentDiffusionPipeline.from_pretrained(folder, device="cpu", dtype="float32"), theirs


def encoded(pipe, picture):
    with torch.no_grad():
        return pipe.components.autoencoder.to_latents(to_tensor(picture)[None])


def generators():
    return [torch.Generator().manual_seed(seed) for seed in (21, 22)]


def apart(found, expected) -> float:
    assert found.shape == expected.shape == (2, 4, 8, 8)
    return ((found - expected).abs().max() / expected.std().clamp_min(1)).item()


@pytest.mark.parametrize(("family", "strength"), [("sd1", 0.35), ("sd2_v", 1.0), ("sdxl", 0.35)])
def test_image_to_image(family, strength, tiny_family, picture):
    ours, theirs = pair(tiny_family(family), "Image2Image")
    latents = encoded(ours, picture).expand(2, -1, -1, -1)
    expected = theirs(
        PROMPT, image=latents, strength=strength, generator=generators(), num_images_per_prompt=2,
        output_type="latent", **CALL,
        **({"original_size": (32, 32), "target_size": (32, 32)} if family == "sdxl" else {}),
    ).images  # fmt: skip
    out = ours.image_to_image(PROMPT, image=picture, strength=strength, output_type="latent", **CALL, **OURS)
    assert apart(out.images, expected) <= BOUND


@pytest.mark.parametrize(("family", "strength"), [("sd1", 0.9), ("sdxl", 0.5)])
def test_inpainting_by_blending(family, strength, tiny_family, picture):
    ours, theirs = pair(tiny_family(family), "Inpainting")
    hole = np.zeros((32, 32), np.uint8)
    hole[8:24, 4:20] = 255
    mask = Image.fromarray(hole)
    latents = encoded(ours, picture)
    expected = theirs(
        PROMPT, image=latents.expand(2, -1, -1, -1), mask_image=torch.from_numpy(hole / 255).float()[None, None],
        masked_image_latents=torch.zeros(1, 4, 8, 8), height=32, width=32, strength=strength, generator=generators(),
        num_images_per_prompt=2, output_type="latent", **CALL,
    ).images  # fmt: skip
    steps = []
    ours.inpaint(PROMPT, image=picture, mask_image=mask, strength=strength, on_step=steps.append, **CALL, **OURS)
    # the folder's DDIM ends at the least noisy level, where diffusers already puts back the clean picture outside
    inside = torch.from_numpy(hole[::4, ::4] > 0).expand_as(expected)
    assert apart(torch.where(inside, steps[-1].x, 0.0), torch.where(inside, expected, 0.0)) <= BOUND
    assert (steps[-1].x0 - latents)[~inside].abs().max() <= 1e-6
