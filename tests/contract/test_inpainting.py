"""The table of guarantees: every pair of ways to repaint, U-Nets, masks and odd sizes, with 0 pixels changed outside.

"Outside" is where the mask, as its mode reads it, is 0. Binary masks are given as greys of 0..127 and 128..255, soft
ones with greys of all strengths.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.families import tiny
from latent_diffusion.inpainting.masks import grow
from latent_diffusion.models.unet import UNet

SIZES = [(45, 31), (33, 48), (57, 39), (7, 5), (31, 32)]  # width, height; the model works at 32 x 32
MODES = {
    "original": {},
    "fill": {"masked_content": "fill"},
    "noise": {"masked_content": "noise"},
    "nothing": {"masked_content": "nothing"},
    "from noise": {"start_from": "noise"},
    "noise, noised": {"masked_content": "noise", "start_from": "noised_image"},
    "strength": {"strength": 0.5},
    "exact steps": {"strength": 0.3, "exact_steps": True},
    "soft": {"mask_mode": "soft"},
    "soft, blurred": {"mask_mode": "soft", "mask_blur": 6, "masked_content": "fill"},
    "grown": {"mask_grow": 3},
    "masked area": {"inpaint_area": "masked"},
    "masked area, no padding": {"inpaint_area": "masked", "padding_mask_crop": 0},
    "whole picture": {"inpaint_area": "whole"},
    "hard edge": {"feather": 0},
    "wide feather": {"feather": 20},
    "resampled": {"resample": 2, "jump_length": 1},
    "colours matched": {"color_match": True},
    "ancestral": {"sampler": "ddpm"},
    "multistep": {"sampler": "dpmpp_2m", "spacing": "karras"},
    "all together": {
        "masked_content": "fill", "mask_mode": "soft", "mask_blur": 3, "mask_grow": 2, "inpaint_area": "masked",
        "resample": 1, "color_match": True, "sampler": "ddpm", "strength": 0.7, "exact_steps": True, "feather": 4,
    },
}  # fmt: skip
NETWORKS = ["4 channels", "9 channels", "9 channels, no blending"]


def masks(width: int, height: int) -> dict[str, np.ndarray]:
    """Ten masks (H, W) bool."""
    yy, xx = np.mgrid[:height, :width]
    point, corners, frame, cross, box = (np.zeros((height, width), bool) for _ in range(5))
    point[height // 2, width // 3] = True
    corners[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    frame[[0, -1]] = frame[:, [0, -1]] = True
    cross[height // 2] = cross[:, width // 2] = True
    box[height // 4 : height // 2 + 1, width // 3 :] = True
    return {
        "everything": np.ones((height, width), bool),
        "one point": point,
        "corners": corners,
        "frame": frame,
        "crossed hairs": cross,
        "diagonal hair": yy == xx * (height - 1) // max(width - 1, 1),
        "box": box,
        "disc": (yy - height / 2) ** 2 + (xx - width / 2) ** 2 <= (min(width, height) / 3) ** 2,
        "half": xx < width // 2,
        "scattered": np.random.default_rng(0).random((height, width)) > 0.9,
    }


def drawn(mask: np.ndarray, soft: bool) -> np.ndarray:
    """The mask as greys that are hard to get right; of a soft one at least one pixel is white."""
    greys = np.random.default_rng(1)
    inside = greys.integers(1 if soft else 128, 256, mask.shape)
    inside[np.unravel_index(mask.argmax(), mask.shape)] = 255
    outside = np.zeros(mask.shape, int) if soft else greys.integers(0, 128, mask.shape)
    return np.where(mask, inside, outside).astype(np.uint8)


def picture(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(2).integers(0, 256, (height, width, 4), np.uint8)
    return Image.fromarray(values, "RGBA") if width % 2 else Image.fromarray(values[..., :3])


@pytest.fixture(scope="module")
def pipelines(tiny_pipeline):
    """The tiny model, and one whose U-Net is told of the picture."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        unet = UNet(replace(tiny.UNET, in_channels=9))
    told = LatentDiffusionPipeline(replace(tiny_pipeline.components, unet=unet), device="cpu")
    return {"4": tiny_pipeline, "9": told}


def repaint(pipelines, network, image, mask, **arguments):
    pipe = pipelines[network[0]]
    options = {"num_inference_steps": 2, "sampler": "ddim", "seed": 1, "latent_blend": "no" not in network} | arguments
    return pipe.inpaint("a cat", image=image, mask_image=Image.fromarray(mask), **options)


def moved(before: Image.Image, after: Image.Image) -> np.ndarray:
    assert before.size == after.size and before.mode == after.mode
    if before.mode == "RGBA":
        assert np.array_equal(np.asarray(before.getchannel("A")), np.asarray(after.getchannel("A")))
    return (np.asarray(before.convert("RGB")) != np.asarray(after.convert("RGB"))).any(-1)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("mode", MODES)
def test_no_pixel_outside_the_mask_changes(pipelines, mode, network):
    """Of the ten masks each U-Net gets every third, beginning with another one for each way: no pair is left out."""
    arguments, turn = MODES[mode], list(MODES).index(mode)
    soft = arguments.get("mask_mode") == "soft"
    for k, name in list(enumerate(masks(1, 1)))[(turn + NETWORKS.index(network)) % 3 :: 3]:
        size = SIZES[(k + turn) % len(SIZES)]
        image, mask = picture(*size), masks(*size)[name]
        covered = grow(mask.astype(np.uint8) * 255, arguments.get("mask_grow", 0)) > 0
        changed = moved(image, repaint(pipelines, network, image, drawn(mask, soft), **arguments).images[0])
        assert changed[~covered].sum() == 0, (name, size)
        assert changed[covered].any(), (name, size, "something inside was repainted")


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("area", ["auto", "masked", "whole"])
def test_thin_strokes_are_repainted_along_their_length(pipelines, network, area):
    image = picture(96, 71)
    for name in ("crossed hairs", "diagonal hair", "frame"):
        mask = masks(96, 71)[name]
        out = repaint(pipelines, network, image, drawn(mask, False), inpaint_area=area).images[0]
        assert moved(image, out)[mask].mean() > 0.95, name


@pytest.mark.parametrize(("network", "sampler"), [*zip(NETWORKS, ["ddim", "ddpm", "dpmpp_2m"], strict=True)])
def test_resampling_changes_the_picture_and_not_the_outside(pipelines, network, sampler):
    image, mask = picture(64, 48), masks(64, 48)["disc"]
    seen = []
    for resample in (0, 1, 3):
        out = repaint(pipelines, network, image, drawn(mask, False), resample=resample, jump_length=2, sampler=sampler,
                      num_inference_steps=4)  # fmt: skip
        assert out.records[0].inpaint.steps_run == 4 * (resample + 1)
        assert not moved(image, out.images[0])[~mask].any()
        seen.append(out.images[0].tobytes())
    assert len(set(seen)) == 3


def test_a_soft_mask_changes_more_where_it_is_lighter(pipelines):
    """Left to right from black to white: image to image of rising strength, and nothing at all at the left edge."""
    image = Image.fromarray(np.full((64, 64, 3), 128, np.uint8))
    mask = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    out = repaint(pipelines, "4", image, mask, mask_mode="soft", num_inference_steps=20, feather=0).images[0]
    change = np.abs(np.asarray(out).astype(int) - 128).mean((0, 2))
    assert change[0] == 0
    assert change[:8].mean() < 0.5 * change[24:40].mean() < 0.5 * change[48:].mean() * 2


def test_batches_and_threads_of_one_seed_make_one_picture(pipelines):
    image, mask = picture(45, 31), drawn(masks(45, 31)["disc"], True)
    options = {"mask_mode": "soft", "resample": 1, "jump_length": 1, "color_match": True, "sampler": "ddpm"}
    together = repaint(pipelines, "9", image, mask, num_images_per_prompt=3, **options)
    for seed, found in zip(together.seeds, together.images, strict=True):
        alone = repaint(pipelines, "9", image, mask, **(options | {"seed": seed})).images[0]
        assert np.abs(np.asarray(alone).astype(int) - np.asarray(found)).max() <= 1
