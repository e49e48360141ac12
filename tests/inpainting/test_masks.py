"""Masks: one rule for every file, pooling that loses nothing, a feather that stays inside."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from latent_diffusion.errors import DataError
from latent_diffusion.inpainting.masks import bounding_box, fade_in, grow, inward_weights, load_mask, max_pool
from latent_diffusion.inpainting.region import Region

GREYS = np.array([[0, 127, 128, 255]], np.uint8)
REPAINTED = [False, False, True, True]


def picture(mode: str) -> Image.Image:
    """The four greys 0, 127, 128, 255 (or the nearest the mode has) in a picture of `mode`."""
    grey = Image.fromarray(GREYS)
    if mode == "I;16":
        return Image.fromarray(GREYS.astype(np.uint16) * 257)
    if mode == "RGBA" or mode == "LA":
        opaque = grey.convert(mode)
        opaque.putalpha(255)
        return opaque
    return Image.fromarray(255 * (GREYS >= 128).astype(np.uint8)).convert("1") if mode == "1" else grey.convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "I;16"])
def test_every_kind_of_mask_follows_one_rule(mode, tmp_path):
    picture(mode).save(tmp_path / "mask.png")
    for source in (tmp_path / "mask.png", picture(mode)):
        mask = load_mask(source, (4, 1))[0]
        assert (mask == 255).tolist() == REPAINTED and (mask == 0).tolist() == [not kept for kept in REPAINTED]


def test_transparent_parts_of_a_mask_are_kept():
    white = Image.new("RGBA", (2, 1), (255, 255, 255, 255))
    white.putpixel((0, 0), (255, 255, 255, 0))
    assert load_mask(white, (2, 1))[0].tolist() == [0, 255]


def test_a_mask_of_another_size_names_both():
    with pytest.raises(DataError, match=r"5x4 px .* 7x9 px"):
        load_mask(Image.new("L", (5, 4)), (7, 9))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 20), st.integers(1, 20), st.randoms())
def test_pooling_keeps_every_single_pixel(height, width, rows, columns, random):
    mask = np.zeros((height, width), bool)
    y, x = random.randrange(height), random.randrange(width)
    mask[y, x] = True
    pooled = max_pool(mask, rows, columns)
    assert pooled.shape == (rows, columns)
    assert pooled[y * rows // height, x * columns // width]
    assert not max_pool(np.zeros_like(mask), rows, columns).any()


def test_pooling_by_whole_cells_is_the_maximum():
    mask = np.random.default_rng(0).random((24, 40)) > 0.98
    assert (max_pool(mask, 3, 5) == mask.reshape(3, 8, 5, 8).any((1, 3))).all()


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_the_feather_never_leaves_the_mask(feather, seed):
    mask = np.random.default_rng(seed).random((20, 30)) > 0.4
    weights = inward_weights(mask, feather)
    assert (weights[~mask] == 0).all()
    assert (weights[mask] > 0).all()
    assert weights.max() <= 1


def test_feather_rises_inwards_and_spares_thin_strokes():
    mask = np.zeros((11, 11), bool)
    mask[2:9, 2:9] = True
    weights = inward_weights(mask, 2)
    assert np.allclose(weights[5, 1:6], [0, 1 / 3, 2 / 3, 1, 1])
    stroke = np.zeros((11, 11), bool)
    stroke[5] = True
    assert (inward_weights(stroke, 3)[5] == 1).all()
    assert (inward_weights(mask, 0) == mask).all()


def test_bounding_box():
    mask = np.zeros((5, 7), bool)
    mask[1, 2] = mask[3, 5] = True
    assert bounding_box(mask) == (2, 1, 6, 4)


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 300), st.integers(1, 300), st.sampled_from([(64, 64), (32, 96)]), st.integers(0, 40), st.randoms()
)
def test_a_region_holds_its_mask_and_fits_the_model(width, height, work, padding, random):
    mask = np.zeros((height, width), bool)
    left, top = random.randrange(width), random.randrange(height)
    right, bottom = random.randint(left + 1, width), random.randint(top + 1, height)
    mask[top:bottom, left:right] = True
    region = Region.around(mask, work, padding)
    x0, y0, x1, y1 = region.box
    assert 0 <= x0 <= left and right <= x1 <= width
    assert 0 <= y0 <= top and bottom <= y1 <= height
    assert region.inner[0] <= work[0] and region.inner[1] <= work[1]
    assert region.inner[0] <= x1 - x0 and region.inner[1] <= y1 - y0, "nothing is enlarged"
    part = region.take(Image.new("RGB", (width, height), (10, 20, 30)))
    assert part.size == work
    assert (np.asarray(part) == (10, 20, 30)).all()
    assert region.take_mask(mask).any()
    assert region.give_back(part).size == (x1 - x0, y1 - y0)


def test_a_picture_of_the_models_size_is_not_resampled():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    mask = np.ones((64, 64), bool)
    region = Region.around(mask, (64, 64))
    assert region.box == (0, 0, 64, 64) and not region.resampled
    assert (np.asarray(region.give_back(region.take(picture))) == np.asarray(picture)).all()


def test_default_padding_shows_the_surroundings():
    mask = np.zeros((480, 640), bool)
    mask[100:200, 300:400] = True
    x0, y0, x1, y1 = Region.around(mask, (64, 64)).box
    assert (x1 - x0, y1 - y0) == (150, 150)  # 25 px on each side


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "I;16"])
def test_a_soft_mask_keeps_its_greys(mode, tmp_path):
    picture(mode).save(tmp_path / "mask.png")
    assert load_mask(tmp_path / "mask.png", (4, 1), "soft")[0].tolist() == [0, 127, 128, 255]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 7), st.integers(0, 2**32 - 1))
def test_growing_is_a_maximum_over_a_square(distance, seed):
    mask = np.random.default_rng(seed).integers(0, 256, (12, 17)).astype(np.uint8)
    wide = np.pad(mask, distance)
    windows = np.lib.stride_tricks.sliding_window_view(wide, (2 * distance + 1,) * 2)
    assert np.array_equal(grow(mask, distance), windows.max((2, 3)))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 7), st.integers(0, 2**32 - 1))
def test_fading_in_neither_wakes_nor_kills_a_pixel(distance, seed):
    mask = (np.random.default_rng(seed).random((20, 30)) > 0.6).astype(np.uint8) * 255
    faded = fade_in(mask, distance)
    assert np.array_equal(faded > 0, mask > 0)
    assert (faded <= mask).all()


def test_pooling_a_soft_mask_takes_the_strongest():
    mask = np.random.default_rng(0).integers(0, 256, (24, 40)).astype(np.uint8)
    assert np.array_equal(max_pool(mask, 3, 5), mask.reshape(3, 8, 5, 8).max((1, 3)))
    assert np.array_equal(max_pool(mask, 48, 80), mask.repeat(2, 0).repeat(2, 1))


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 40), st.randoms())
def test_areas(width, height, padding, random):
    """ "masked" fills the working size unless the picture's shape forbids it; "whole" shows everything."""
    mask = np.zeros((height, width), np.uint8)
    left, top = random.randrange(width), random.randrange(height)
    mask[top : random.randint(top + 1, height), left : random.randint(left + 1, width)] = 255
    close = Region.around(mask, (64, 48), padding, "masked")
    x0, y0, x1, y1 = close.box
    assert not mask[:y0].any() and not mask[y1:].any() and not mask[:, :x0].any() and not mask[:, x1:].any()
    assert close.inner[0] <= 64 and close.inner[1] <= 48
    assert close.inner[0] >= 60 or close.inner[1] >= 45
    assert close.take_mask(mask).max() == 255
    whole = Region.around(mask, (64, 48), None, "whole")
    assert whole.box == (0, 0, width, height)
    assert whole.take_mask(mask).max() == 255


def test_a_small_mask_is_enlarged_when_asked():
    mask = np.zeros((480, 640), np.uint8)
    mask[100:110, 300:310] = 255
    region = Region.around(mask, (64, 64), 3, "masked")
    assert region.box == (297, 97, 313, 113) and region.inner == (64, 64)
    assert Region.around(mask, (64, 64), 3).box[2] - Region.around(mask, (64, 64), 3).box[0] == 64


def test_a_mask_in_the_transparency_of_a_picture_and_a_swapped_one():
    pixels = np.zeros((6, 5, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[2:4, 1:3, 3] = 0  # an erased hole
    holed = Image.fromarray(pixels)
    found = load_mask(holed, (5, 6), channel="alpha")
    assert found.sum() == 4 * 255 and found[2, 1] == 255
    assert np.array_equal(load_mask(holed, (5, 6), channel="alpha", invert=True), 255 - found)
    assert np.array_equal(load_mask(Image.fromarray(found), (5, 6), invert=True), 255 - found)
    with pytest.raises(DataError, match="no transparency"):
        load_mask(Image.fromarray(found), (5, 6), channel="alpha")
