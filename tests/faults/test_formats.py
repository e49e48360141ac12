"""TIFF, AVIF and HEIC are read as the other formats are: upright, 8-bit RGB, no more than was allowed decoded."""

import contextlib
import io
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from latent_diffusion.data.batches.folder import ImageFolder
from latent_diffusion.data.pictures.formats import SENT, is_sequence
from latent_diffusion.data.pictures.images import decode_image, load_image, upright_size
from latent_diffusion.data.pictures.oddities import look
from latent_diffusion.data.rows import metadata
from latent_diffusion.data.settings import DataConfig
from latent_diffusion.errors import DataError
from latent_diffusion.provenance.picture_file import texts_of

FORMS = ["TIFF", "AVIF", "HEIC"]
BLOCKS = np.kron(np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
"""Twelve plain squares, 64x48 px."""


def encoded(form: str, picture: Image.Image | np.ndarray = BLOCKS, **more) -> bytes:
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    stream = io.BytesIO()
    if form == "HEIC":
        heif = pytest.importorskip("pillow_heif")
        heif.from_pillow(picture).save(stream, quality=100, chroma=444, **more)
    else:
        picture.save(stream, form, **({"quality": 100, "subsampling": "4:4:4"} if form == "AVIF" else {}), **more)
    return stream.getvalue()


def near(a: Image.Image, b: np.ndarray) -> bool:
    return a.size == b.shape[1::-1] and float(np.abs(np.asarray(a).astype(int) - b).mean()) < 2


@pytest.mark.parametrize("form", FORMS)
def test_the_picture_as_file_bytes_and_row_of_a_data_set(tmp_path, form):
    name = f"a.{form.lower()}"
    (tmp_path / name).write_bytes(encoded(form))
    (tmp_path / "a.txt").write_text("squares")
    assert near(load_image(tmp_path / name), BLOCKS)
    data = (tmp_path / name).read_bytes()
    assert upright_size(data, name=name) == (64, 48) and texts_of(data, name).parameters is None
    row = ImageFolder(DataConfig(path=str(tmp_path), size=48), seed=0).image(0)
    assert np.abs(row.permute(1, 2, 0).numpy().astype(int) - BLOCKS[:, 8:56]).mean() < 2
    assert (
        not look(name, data, load_image(tmp_path / name)).misnamed
        and look("a.png", data, Image.new("L", (1, 1))).misnamed
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_stands_upright(form, orientation):  # D10
    stored = {
        1: BLOCKS, 2: BLOCKS[:, ::-1], 3: BLOCKS[::-1, ::-1], 4: BLOCKS[::-1], 5: BLOCKS.transpose(1, 0, 2),
        6: BLOCKS.transpose(1, 0, 2)[::-1], 7: BLOCKS.transpose(1, 0, 2)[::-1, ::-1],
        8: BLOCKS.transpose(1, 0, 2)[:, ::-1],
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(
        form, np.ascontiguousarray(stored), **({"exif": exif} if form == "TIFF" else {"exif": exif.tobytes()})
    )
    assert near(decode_image(data, name="x"), BLOCKS) and upright_size(data, name="x") == (64, 48)


@pytest.mark.parametrize("form", FORMS)
def test_transparent_pixels_show_the_background(form):  # D09
    data = encoded(form, Image.new("RGBA", (64, 64), (255, 0, 0, 0)))
    assert np.asarray(decode_image(data, name="x")).min() >= 254
    assert decode_image(data, name="x", background=None).mode == "RGBA"


@pytest.mark.parametrize("form", FORMS)
def test_colours_of_a_profile_become_srgb(form):  # D12
    """A profile whose red primary is green and whose green is red."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {bytes(profile[place : place + 4]): place for place in range(132, 132 + 12 * profile[131], 12)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    named = bytes(profile).replace(b"sRGB", b"odd ").replace("sRGB".encode("utf-16-be"), "odd ".encode("utf-16-be"))
    picture = Image.new("RGB", (64, 64), (200, 40, 90))
    picture.info["icc_profile"] = named
    data = encoded(form, picture, icc_profile=named)
    assert np.abs(np.asarray(decode_image(data, name="x", to_srgb=True))[8, 8].astype(int) - [40, 200, 90]).max() <= 3


@pytest.mark.parametrize("form", [*FORMS, "deflate"])
@pytest.mark.parametrize("share", [0.5, 0.97])
def test_cut_files_are_refused_by_name(form, share):  # D01
    data = encoded("TIFF", compression="tiff_adobe_deflate") if form == "deflate" else encoded(form)
    with pytest.raises(DataError, match=r"cut\.tif"):
        decode_image(data[: int(len(data) * share)], name="cut.tif")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [None, "tiff_adobe_deflate"])
def test_sixteen_bits_are_scaled(order, packed):  # D08
    ramp = np.linspace(0, 65535, 256).astype(f"{order}u2").reshape(16, 16)
    picture = Image.frombytes("I;16" if order == "<" else "I;16B", (16, 16), ramp.tobytes())
    read = np.asarray(decode_image(encoded("TIFF", picture, compression=packed), name="x"))[..., 0]
    assert np.array_equal(read, np.rint(ramp.astype(float) / 257))


def tiff(*fields: tuple[int, int, int], data: bytes) -> bytes:
    """Return a TIFF of one page: fields (tag, type, value), and `data` as its strip, or tile if there is a 322."""
    end = 8 + 2 + 12 * (len(fields) + 2) + 4
    first = 324 if any(tag == 322 for tag, _, _ in fields) else 273
    places = ((first, 4, end), (325 if first == 324 else 279, 4, len(data)))
    rows = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in sorted((*fields, *places)))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(fields) + 2) + rows + bytes(4) + data


GREY = ((258, 3, 8), (262, 3, 1), (277, 3, 1))  # bits, black is zero, one sample


def test_bombs_are_refused_before_they_are_decoded(peak_memory):  # D04, D13
    packed = zlib.compress(bytes(1 << 20))
    size = ((256, 4, 64), (257, 4, 64), (259, 3, 8))
    wide = tiff(*GREY, (256, 4, 65_000), (257, 4, 2_000), (259, 3, 8), (278, 4, 2_000), data=packed)
    tiled = tiff(*GREY, *size, (322, 4, 30_000), (323, 4, 30_000), data=packed)
    with peak_memory() as taken:
        for data, words in ((wide, "65000x2000 px is over the limit"), (tiled, "tiles of 30000x30000 px are over")):
            with pytest.raises(DataError, match=words):
                decode_image(data, name="x")
            with pytest.raises(DataError, match=words):
                texts_of(data, "x")
        for form in ("AVIF", "HEIC"):
            data = encoded(form)
            place = data.index(b"ispe") + 8
            for side in (9_000, 60_000):
                lie = data[:place] + struct.pack(">II", side, side) + data[place + 8 :]
                with pytest.raises(DataError, match="x'"):
                    decode_image(lie, name="x")
        assert taken() < 50e6


@pytest.mark.filterwarnings("ignore:Tag data")
@pytest.mark.parametrize("form", FORMS)
def test_any_damage_is_one_error(form):
    whole, random = encoded(form), np.random.default_rng(5)
    for _ in range(100):
        data = bytearray(whole)
        for place in random.integers(min(len(whole), 500), size=3):
            data[place] = random.integers(256)
        for read in (decode_image, upright_size, texts_of):
            with contextlib.suppress(DataError):
                read(bytes(data), name="x")


def test_pages_and_what_has_no_white(caplog):  # D11
    pages = encoded("TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    assert near(decode_image(pages, name="x"), BLOCKS) and is_sequence(pages) and not is_sequence(encoded("TIFF"))
    assert not any(map(is_sequence, (b"II*\0", b"MM\0*" + b"\xff" * 8, encoded("AVIF"))))
    moving = encoded("AVIF", save_all=True, append_images=[Image.new("RGB", (64, 48))])
    assert near(decode_image(moving, name="x"), BLOCKS) and is_sequence(moving)
    for mode, words in (("F", "float pixels"), ("LAB", "CIE Lab"), ("I", "32-bit grey")):
        with pytest.raises(DataError, match=words):
            decode_image(encoded("TIFF", Image.new(mode, (8, 8), 70_000 if mode == "I" else None)), name="x")
    for mode in ("1", "L", "P", "LA", "CMYK", "YCbCr"):
        assert (
            decode_image(encoded("TIFF", Image.new("L", (8, 8), 255).convert(mode)), name="x").getpixel((3, 3))
            == (255,) * 3
        )


def test_over_http_fewer_formats_are_read():
    for form in FORMS:
        with pytest.raises(DataError, match="not a picture of JPEG, PNG, WEBP, BMP, but a"):
            decode_image(encoded(form), name="x", formats=SENT)


def test_heic_without_its_extra_is_named(tmp_path, monkeypatch, caplog):
    data = encoded("HEIC")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError, match=r"a\.heic'?: a HEIC picture; `pip install 'latent_diffusion\[heic\]'`"):
        decode_image(data, name="a.heic")
    (tmp_path / "a.heic").write_bytes(data)
    Image.new("L", (16, 16)).save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("black")
    monkeypatch.setattr(metadata, "PICTURES", (".png",))
    monkeypatch.setattr(metadata, "UNREAD", (".heic",))
    ImageFolder(DataConfig(path=str(tmp_path), size=8), seed=0)
    assert "1 pictures are left out" in caplog.text and "1 .heic" in caplog.text
