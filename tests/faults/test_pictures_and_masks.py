"""Faulty pictures and masks: one error, in the API and on the command line.

Rows I01 to I07, I09, I10 and G06 of docs/reliability.md; I04 at length in
contract/test_inpainting.py.
"""

import io

import numpy as np
import pytest
from PIL import Image

from latent_diffusion.cli.main import main
from latent_diffusion.errors import ConfigError, DataError, LatentDiffusionWarning

RNG = np.random.default_rng(0)
PICTURE = Image.fromarray(RNG.integers(0, 256, (31, 45, 3), np.uint8))
QUICK = {"num_inference_steps": 1, "seed": 1}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a picture of 45x31 px and a mask whose right half is white."""
    monkeypatch.chdir(tmp_path)
    PICTURE.save("image.png")
    grey(np.arange(45) >= 22).save("mask.png")
    return tmp_path


def grey(columns) -> Image.Image:
    return Image.fromarray(np.tile(np.asarray(columns).astype(np.uint8) * 255, (31, 1)))


def outcome(pipe, folder, capsys, *, image="image.png", mask="mask.png"):
    """Inpaint through both doors; return the line of the error, which must be the same."""
    with pytest.raises(DataError) as error:
        pipe.inpaint("a cat", image=image, mask_image=mask, **QUICK)
    capsys.readouterr()
    command = ["inpaint", "a cat", "-i", image, "--mask", mask, "--model", str(folder), "--steps", "1"]
    assert main(command) == 3
    out, err = capsys.readouterr()
    assert out == "" and err == f"error: {error.value}\n"
    return str(error.value)


def test_i01_another_size(tiny_pipeline, tiny_folder, here, capsys):
    grey(np.arange(44) >= 22).save("mask.png")
    line = outcome(tiny_pipeline, tiny_folder, capsys)
    assert "44x31" in line and "45x31" in line


def test_i02_all_black_all_white_one_pixel(tiny_pipeline):
    masks = np.zeros((3, 31, 45), np.uint8)
    masks[1], masks[2, 10, 20] = 255, 255
    black, white, point = map(Image.fromarray, masks)
    with pytest.warns(LatentDiffusionWarning, match="nothing to repaint"):
        same = tiny_pipeline.inpaint("a cat", image=PICTURE, mask_image=black, **QUICK).images[0]
    assert np.array_equal(np.asarray(same), np.asarray(PICTURE))
    for mask in (white, point):
        out = tiny_pipeline.inpaint("a cat", image=PICTURE, mask_image=mask, **QUICK).images[0]
        changed = (np.asarray(out) != np.asarray(PICTURE)).any(-1)
        assert changed.any() and not changed[np.asarray(mask) == 0].any()


@pytest.mark.parametrize("kind", ["L", "1", "P", "LA", "RGB", "RGBA", "I;16"])
def test_i03_every_kind_of_mask_is_one_mask(tiny_pipeline, here, kind):
    mask = grey(np.arange(45) >= 22)
    if kind == "I;16":
        other = Image.fromarray(np.asarray(mask).astype(np.uint16) * 257)
    else:
        other = mask.convert("RGB").convert(kind) if kind == "P" else mask.convert(kind)
    other.save("other.png")
    pictures = [
        tiny_pipeline.inpaint("a cat", image=PICTURE, mask_image=file, mask_mode=mode, **QUICK).images[0]
        for mode in ("binary", "soft")
        for file in ("mask.png", "other.png")
    ]
    assert all(np.array_equal(np.asarray(pictures[0]), np.asarray(picture)) for picture in pictures[1:])


@pytest.mark.parametrize(("value", "changed"), [(127, False), (128, True)])
def test_i03_half_grey(tiny_pipeline, value, changed):
    """128 and more is repainted; in soft mode every grey but 0 may be."""
    mask = Image.new("L", PICTURE.size, value)
    if changed:
        out = tiny_pipeline.inpaint("a cat", image=PICTURE, mask_image=mask, **QUICK).images[0]
        assert not np.array_equal(np.asarray(out), np.asarray(PICTURE))
    else:
        with pytest.warns(LatentDiffusionWarning):
            tiny_pipeline.inpaint("a cat", image=PICTURE, mask_image=mask, **QUICK)


def test_i05_sizes_that_are_no_multiple_of_8(tiny_pipeline):
    mask = grey(np.arange(45) >= 22)
    assert tiny_pipeline.inpaint("a cat", image=PICTURE, mask_image=mask, **QUICK).images[0].size == (45, 31)
    assert tiny_pipeline.outpaint("a cat", image=PICTURE, left=3, **QUICK).images[0].size == (48, 31)
    redrawn = tiny_pipeline.image_to_image("a cat", image=PICTURE, **(QUICK | {"num_inference_steps": 2}))
    assert redrawn.images[0].size == (48, 32) == (redrawn.records[0].width, redrawn.records[0].height)


def test_i06_a_turned_picture_and_a_mask_that_is_not(tiny_pipeline, tiny_folder, here, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    PICTURE.save("image.png", exif=exif)
    line = outcome(tiny_pipeline, tiny_folder, capsys)
    assert "45x31" in line and "31x45" in line
    Image.open("mask.png").transpose(Image.Transpose.ROTATE_270).save("mask.png")
    out = tiny_pipeline.inpaint("a cat", image="image.png", mask_image="mask.png", **QUICK).images[0]
    assert out.size == (31, 45)


def broken(kind: str) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    data = buffer.getvalue()
    return {
        "cut": data[: len(data) // 2],
        "empty": b"",
        "html": b"<html><body>not found</body></html>",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0",
        "bomb": data[:16] + (65535).to_bytes(4, "big") * 2 + data[24:],
        "magic": b"\x89PNG\r\n\x1a\nbroken",
    }[kind]


@pytest.mark.parametrize("kind", ["cut", "empty", "html", "svg", "eps", "bomb", "magic"])
@pytest.mark.parametrize("role", ["image", "mask"])
def test_i07_i10_one_loader_for_pictures_and_masks(tiny_pipeline, tiny_folder, here, capsys, kind, role):
    (here / "bad.png").write_bytes(broken(kind))
    line = outcome(tiny_pipeline, tiny_folder, capsys, **{role: "bad.png"})
    assert "bad.png" in line and " at 0x" not in line


@pytest.mark.parametrize("command", ["inpaint", "img2img", "outpaint"])
def test_i09_addresses_on_the_command_line(command, here, capsys, monkeypatch):
    monkeypatch.setattr("socket.socket", lambda *_, **__: pytest.fail("a connection was opened"))
    more = ["--mask", "mask.png"] if command == "inpaint" else []
    for address in ("http://169.254.169.254/", "file:///etc/passwd", "data:text/html,x"):
        assert main([command, "a cat", "-i", address, *more]) == 3
        assert "there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), "1", None, True])
def test_g06_strengths(tiny_pipeline, value):
    for draw in (
        lambda: tiny_pipeline.image_to_image("a cat", image=PICTURE, strength=value, **QUICK),
        lambda: tiny_pipeline.inpaint("a cat", image=PICTURE, mask_image=grey(np.arange(45)), strength=value, **QUICK),
        lambda: tiny_pipeline.outpaint("a cat", image=PICTURE, left=8, strength=value, **QUICK),
        lambda: tiny_pipeline.hires("a cat", hires_strength=value, **QUICK),
    ):
        with pytest.raises(ConfigError, match="strength"):
            draw()
