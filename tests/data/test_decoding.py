"""JPEGs decoded at a fraction of their sides: how near they are to the exact way, and where that way is kept."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from latent_diffusion.data.batches.folder import DataConfig, ImageFolder
from latent_diffusion.data.pictures.fitting import reduction
from latent_diffusion.data.pictures.images import decode_image, load_image


def photograph(width, height, form="JPEG", orientation=1, **options):
    """Return the file of a picture with edges, areas and grain."""
    rough = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8))
    pixels = np.asarray(rough.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    pixels[height // 3 : height // 2, width // 4 :] = 240
    pixels += np.random.default_rng(1).normal(0, 3, (height, width, 1))
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, form, exif=exif.tobytes(), **options)
    return stream.getvalue()


@pytest.fixture
def both(tmp_path):
    """Return a function that gives a picture file's pixels at 64 px, decoded fast and exactly, and its stored size."""

    def read(data, **keys):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "a.jpg").write_bytes(data)
        (folder / "a.txt").write_text("a cat")
        sets = [
            ImageFolder(DataConfig.model_validate({"path": str(folder), "size": 64, "decode": decode, **keys}), 0)
            for decode in ("fast", "exact")
        ]
        assert sets[0].stored_size(0) == sets[1].stored_size(0)
        assert sets[0].sample(0).size_ids == sets[1].sample(0).size_ids
        return [data.image(0).numpy().astype(float) for data in sets]

    return read


def psnr(made, wanted):
    return 10 * math.log10(255**2 / np.square(made - wanted).mean())


@pytest.mark.parametrize("keys", [{}, {"fit": "pad"}, {"cache_bytes": 0, "check": "none"}, {"buckets": {"step": 8}}])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_reduced_and_near_the_exact_way(both, keys, orientation):
    if "buckets" in keys:
        keys = {"buckets": {"step": 8, "min_side": 32}}
    fast, exact = both(photograph(1024, 768, orientation=orientation, quality=90), **keys)
    assert 45 < psnr(fast, exact) < 70  # another way, but no shift of the picture


@pytest.mark.parametrize(
    ("width", "height", "form"), [(1024, 768, "PNG"), (248, 248, "JPEG"), (1023, 767, "JPEG"), (64, 64, "JPEG")]
)
def test_what_cannot_be_reduced_has_the_bits_of_the_exact_way(both, width, height, form):
    fast, exact = both(photograph(width, height, form))
    assert np.array_equal(fast, exact)


def test_the_reduction_leaves_twice_the_pixels_that_are_needed():
    assert reduction((4000, 3000), (512, 512)) == 2
    assert reduction((4096, 4096), (512, 512)) == 4
    assert reduction((8192, 8192), (512, 512)) == 8
    assert reduction((6000, 1500), (512, 512)) == 1  # a part of 1500 px is shown
    assert reduction((6000, 1500), (512, 512), pad=True) == 4  # all of it, 512 px wide
    assert reduction((4002, 3000), (256, 256)) == 2  # 4002 is no multiple of 4


def test_a_picture_given_open_is_never_the_one_returned():
    given = Image.new("RGB", (8, 8))
    made = load_image(given)
    made.putpixel((0, 0), (255, 0, 0))
    assert given.getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "MPO"])
def test_pictures_of_several_frames_stay_readable_after_their_file_is_closed(form):
    stream = io.BytesIO()
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(stream, form, save_all=True, append_images=frames[1:], lossless=True, quality=95)
    picture = decode_image(stream.getvalue(), name="x", reduction=2)
    small = np.asarray(picture.resize((4, 4), Image.Resampling.LANCZOS)).astype(int)
    assert small[..., 0].min() > 250 and small[..., 1:].max() < 5
