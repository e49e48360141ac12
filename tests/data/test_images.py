import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from latent_diffusion.data.pictures.images import decode_image, fit_square, load_image, to_pil, to_tensor
from latent_diffusion.errors import DataError


def test_every_orientation_gives_the_same_upright_picture():  # D10
    upright = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3) * 3
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stream = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG", exif=exif.tobytes())
        assert np.array_equal(np.asarray(decode_image(stream.getvalue(), name="x")), upright), orientation


def test_transparent_pixels_show_the_background_not_their_hidden_colour():  # D09
    red_hidden = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    assert np.asarray(load_image(red_hidden)).min() == 255
    grey = Image.new("LA", (16, 16), (10, 0))
    assert np.asarray(load_image(grey, background=(1, 2, 3)))[0, 0].tolist() == [1, 2, 3]
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([255, 0, 0] * 256)
    palette.info["transparency"] = 0
    assert np.asarray(load_image(palette)).min() == 255
    assert load_image(red_hidden, background=None).mode == "RGBA"


def test_sixteen_bit_grey_is_scaled_not_clipped():  # D08
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    stream = io.BytesIO()
    Image.fromarray(ramp).save(stream, "PNG")
    assert abs(np.asarray(decode_image(stream.getvalue(), name="x")).mean() - 127.5) < 1


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "P", "RGB"])
def test_other_modes_become_rgb(mode):  # D07
    picture = load_image(Image.new("L", (16, 16), 255).convert(mode))
    assert picture.mode == "RGB"
    assert np.asarray(picture).min() >= 253


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.5, 0.999])
def test_cut_files_are_refused_by_name(form, share, encoded):  # D01
    data = encoded((64, 64), form)
    with pytest.raises(DataError, match="cut\\.png"):
        decode_image(data[: int(len(data) * share)], name="cut.png")


def test_the_message_says_what_the_bytes_look_like(encoded):  # D02
    for data, words in (
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"just some text here", "text"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\0\x1cftypmp42\0\0", "a HEIC, AVIF or video file; save it as JPEG or PNG"),
    ):
        with pytest.raises(DataError, match=words):
            decode_image(data, name="x.jpg")
    broken = bytearray(encoded())
    broken[60] ^= 255
    with pytest.raises(DataError):
        decode_image(bytes(broken), name="crc.png")


def test_content_counts_not_the_suffix(tmp_path, encoded):  # D03
    (tmp_path / "x.jpg").write_bytes(encoded(form="PNG"))
    assert load_image(tmp_path / "x.jpg").size == (32, 32)


def test_size_is_refused_from_the_header(encoded):  # D04, D05
    data = bytearray(encoded())
    data[16:24] = (65535).to_bytes(4, "big") * 2
    with pytest.raises(DataError, match="huge"):
        decode_image(bytes(data), name="huge.png")
    with pytest.raises(DataError, match="max_pixels"):
        decode_image(encoded((50, 50)), name="x", max_pixels=2000)


@pytest.mark.parametrize("form", ["ICO", "PDF", "EPS", "GIF"])
def test_formats_outside_the_list_are_refused(form, encoded):  # D13
    with pytest.raises(DataError):
        decode_image(encoded(form=form), name="x.png")


def test_no_fifo_no_folder_no_absent_file(tmp_path):  # D23
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("pipe.png", ".", "absent.png"):
        with pytest.raises(DataError):
            load_image(tmp_path / name)


def test_tensor_and_picture_round_trip():
    picture = load_image(Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)))
    tensor = to_tensor(picture)
    assert tensor.shape == (3, 9, 7) and tensor.dtype == torch.float32 and tensor.abs().max() <= 1
    assert np.array_equal(np.asarray(to_pil(tensor[None])[0]), np.asarray(picture))


def test_fitting_takes_the_centre_or_pads():
    wide = Image.new("RGB", (40, 20), "black")
    assert np.asarray(fit_square(wide, 10)).max() == 0
    padded = np.asarray(fit_square(wide, 10, pad=True))
    assert padded[0].min() == 255 and padded[5].max() == 0


@pytest.mark.parametrize("behind", [0, 10_000, 70_000, 300_000])
def test_what_follows_the_end_of_a_png_is_no_part_of_it(behind, encoded):
    whole = encoded()
    assert decode_image(whole + b"x" * behind, name="a.png").size == decode_image(whole, name="a.png").size
    with pytest.raises(DataError, match=r"a\.png.*damaged"):
        decode_image(whole[:-12] + b"x" * behind, name="a.png")
