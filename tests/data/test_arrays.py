"""Arrays as pictures: the shapes and ranges that diffusers' users have, and everything else refused in one line."""

import numpy as np
import pytest
import torch
from PIL import Image

from latent_diffusion.data.pictures.images import load_image
from latent_diffusion.errors import ConfigError
from latent_diffusion.inpainting.masks import load_mask

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
CHANNELS_FIRST = torch.from_numpy(PIXELS).permute(2, 0, 1)


@pytest.mark.parametrize(
    "array",
    [
        PIXELS, PIXELS[None], PIXELS / np.float32(255), (PIXELS / 255.0)[None], PIXELS[::-1][::-1],
        CHANNELS_FIRST, CHANNELS_FIRST[None], CHANNELS_FIRST / 255, (CHANNELS_FIRST / 255).double()[None],
    ],
)  # fmt: skip
def test_a_picture_as_an_array_is_that_picture(array):
    assert load_image(array).tobytes() == Image.fromarray(PIXELS).tobytes()


def test_bfloat16_is_read():
    assert load_image(torch.ones(3, 4, 5, dtype=torch.bfloat16)).getextrema() == ((255, 255),) * 3


def test_opacity_is_kept_where_it_is_wanted():
    pixels = np.zeros((4, 4, 4), dtype=np.uint8)
    pixels[:2, :, 3] = 255
    assert load_image(pixels, background=None).mode == "RGBA"
    assert load_image(pixels).getpixel((0, 3)) == (255, 255, 255)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32, np.float64])
def test_masks_of_one_channel(kind):
    mask = np.zeros((6, 5), dtype=kind)
    mask[2:4, 1:3] = 255 if kind is np.uint8 else 1
    for form in (mask, mask[..., None], torch.from_numpy(mask), torch.from_numpy(mask)[None, None]):
        read = load_mask(form, (5, 6))
        assert read.sum() == 4 * 255 and read[2, 1] == 255


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 6, 5, 3)), r"shape \(2, 6, 5, 3\).*\(H, W, C\)"),
        (torch.zeros(6, 5, 3), r"shape \(6, 5, 3\).*\(C, H, W\)"),
        (np.zeros((0, 5)), r"shape \(0, 5\)"),
        (np.zeros(7), r"shape \(7,\)"),
        (np.zeros((6, 5), dtype=np.int64), "int64.*uint8"),
        (np.full((6, 5), -1.0), "from -1 to -1.*0..1"),
        (np.full((6, 5), 255.0), "from 255 to 255.*0..1"),
        (np.full((6, 5), np.nan), "nan"),
        (torch.full((3, 6, 5), float("inf")), "inf"),
        ([PIXELS], "not \\["),
        (5, "not 5"),
        (None, "not None"),
        (b"a.png", "not b'a.png'"),
    ],
)
def test_other_arrays_and_things_are_refused(array, message):
    with pytest.raises(ConfigError, match=message):
        load_image(array)
