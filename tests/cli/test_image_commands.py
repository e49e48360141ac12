"""img2img, outpaint, the options of inpaint and the second pass, as a user meets them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latent_diffusion.cli.main import main
from latent_diffusion.provenance.picture_file import read_texts


@pytest.fixture
def run(tiny_folder, tmp_path, monkeypatch):
    """Run a command with the tiny model in a folder that holds a picture of 45x31 px and a grey mask."""
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(0).integers(0, 256, (31, 45, 3), np.uint8)
    Image.fromarray(values).save("image.png")
    Image.fromarray(np.tile(np.linspace(0, 255, 45).astype(np.uint8), (31, 1))).save("mask.png")

    def command(name, *arguments):
        options = ("--model", str(tiny_folder), "--steps", "2", "--seed", "3", "-o", "out.png")
        return main([name, "a cat", *arguments, *options])

    return command


def pixels(file):
    return np.asarray(Image.open(file).convert("RGB"))


def record(file="out.png"):
    found = read_texts(Path(file))[1]
    assert found is not None
    return found


def task(name) -> Any:
    """What the record says of the task; read as it is, its fields are checked by their values."""
    found = getattr(record(), name)
    assert found is not None
    return found


def test_img2img(run):
    assert run("img2img", "-i", "image.png", "--strength", "0.5", "--height", "24", "--width", "40") == 0
    assert pixels("out.png").shape == (24, 40, 3)
    found = task("image_to_image")
    assert (found.strength, found.steps_run, found.resize_mode) == (0.5, 1, "crop")


def test_img2img_with_exact_steps(run):
    assert run("img2img", "-i", "image.png", "--strength", "0.1", "--exact-steps", "--resize-mode", "pad") == 0
    assert task("image_to_image").steps_run == 2


def test_outpaint(run):
    assert run("outpaint", "-i", "image.png", "--left", "7", "--bottom", "3") == 0
    assert np.array_equal(pixels("out.png")[:31, 7:], pixels("image.png"))
    assert pixels("out.png").shape == (34, 52, 3)
    assert task("inpaint").masked_content == "fill"


def test_every_option_of_inpaint_arrives(run):
    assert run(
        "inpaint", "-i", "image.png", "--mask", "mask.png", "--mask-mode", "soft", "--mask-grow", "1", "--mask-blur",
        "2", "--inpaint-area", "masked", "--padding", "5", "--resample", "1", "--jump-length", "3", "--color-match",
        "--feather", "1", "--masked-content", "noise", "--start-from", "noised_image", "--exact-steps",
    ) == 0  # fmt: skip
    names = ("mask_mode", "mask_grow", "mask_blur", "inpaint_area", "padding", "resample", "jump_length", "color_match",
             "feather", "masked_content", "start_from", "exact_steps")  # fmt: skip
    found = tuple(getattr(task("inpaint"), name) for name in names)
    assert found == ("soft", 1, 2, "masked", 5, 1, 3, True, 1, "noise", "noised_image", True)  # fmt: skip
    assert np.array_equal(pixels("out.png")[:, 0], pixels("image.png")[:, 0])


def test_two_passes(run):
    assert run("generate", "--hires", "1.5", "--upscaler", "lanczos", "--hires-strength", "0.5") == 0
    assert pixels("out.png").shape == (48, 48, 3)
    assert task("hires").upscaler == "lanczos"


def test_variations(run):
    assert run("generate", "-k", "2", "--variation-seed", "8", "--variation-strength", "0.2") == 0
    first, second = record("out-0001.png"), record("out-0002.png")
    assert (first.seed, second.seed) == (3, 3)
    assert (first.variation_seed, second.variation_seed) == (8, 9)


def test_a_lossy_file_is_said_to_end_the_promise(run, tiny_folder, capsys):
    arguments = ["-i", "image.png", "--left", "4", "--model", str(tiny_folder), "--steps", "1", "-o", "out.jpg"]
    assert main(["outpaint", "a cat", *arguments]) == 0
    assert "is a lossy format" in capsys.readouterr().err


def again(tiny_folder, *arguments):
    """Make out.png again and return what was reported."""
    return main(
        ["regenerate", "out.png", "--model", str(tiny_folder), "-i", "image.png", *arguments, "-o", "again.png"]
    )


@pytest.mark.parametrize("swapped", [False, True])
def test_a_mask_and_its_opposite(run, tiny_folder, capsys, swapped):
    assert run("inpaint", "-i", "image.png", "--mask", "mask.png", *(["--mask-invert"] if swapped else [])) == 0
    white = np.asarray(Image.open("mask.png")) >= 128
    changed = (pixels("out.png") != pixels("image.png")).any(2)
    assert changed.any() and not (changed & (white if swapped else ~white)).any()
    assert task("inpaint").mask_invert is swapped
    capsys.readouterr()
    assert again(tiny_folder, "--mask", "mask.png") == 0
    assert "bit for bit" in capsys.readouterr().err


def erased():
    """Erase a hole of 12x10 px in image.png and return where it is; outside is a pixel that is half transparent."""
    picture = Image.open("image.png").convert("RGBA")
    alpha = np.full((31, 45), 255, np.uint8)
    alpha[8:18, 20:32] = 0
    alpha[2, 3] = 200
    picture.putalpha(Image.fromarray(alpha))
    picture.save("image.png")
    return alpha == 0


def test_the_hole_of_a_picture_is_its_mask_and_is_filled(run, tiny_folder, capsys):
    hole = erased()
    assert run("inpaint", "-i", "image.png", "--mask-channel", "alpha") == 0
    old, new = (np.asarray(Image.open(file)) for file in ("image.png", "out.png"))
    assert new.shape == old.shape and np.array_equal(new[~hole], old[~hole])
    assert (new[hole][:, 3] == 255).all() and (new[hole][:, :3] != old[hole][:, :3]).any(1).mean() > 0.9
    assert task("inpaint").mask_channel == "alpha"
    capsys.readouterr()
    assert again(tiny_folder) == 0
    assert "bit for bit" in capsys.readouterr().err


def test_what_was_drawn_under_a_hole_does_not_show(run):
    """An eraser leaves colours in the file that nobody sees; the edge of the new part is not mixed with them."""
    hole = erased()
    made = []
    for colour in (0, 255):
        values = np.array(Image.open("image.png"))
        values[hole, :3] = colour
        Image.fromarray(values).save("image.png")
        assert run("inpaint", "-i", "image.png", "--mask-channel", "alpha", "--masked-content", "nothing") == 0
        made.append(np.asarray(Image.open("out.png"))[hole])
        Path("out.png").unlink()
    assert np.array_equal(*made)


def test_the_transparency_of_a_mask_of_its_own(run, tiny_folder, capsys):
    Path("opaque.png").write_bytes(Path("image.png").read_bytes())
    hole = erased()
    Path("image.png").rename("mask.png")
    Path("opaque.png").rename("image.png")
    assert run("inpaint", "-i", "image.png", "--mask", "mask.png", "--mask-channel", "alpha") == 0
    changed = (pixels("out.png") != pixels("image.png")).any(2)
    assert changed.any() and not changed[~hole].any()
    capsys.readouterr()
    assert again(tiny_folder, "--mask", "mask.png") == 0
    assert "bit for bit" in capsys.readouterr().err


def test_a_mask_of_zeros_and_ones_is_named_by_its_largest_value(run, capsys):
    Image.fromarray((np.asarray(Image.open("mask.png")) > 99).astype(np.uint8)).save("mask.png")
    assert run("inpaint", "-i", "image.png", "--mask", "mask.png") == 0
    assert "no white (128 or more of 255): its largest value is 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["inpaint", "-i", "image.png"], 2, "use --mask-channel alpha for a picture with holes"),
        (["inpaint", "-i", "image.png", "--mask-channel", "alpha"], 3, "no transparency"),
        (["img2img", "-i", "none.png"], 3, "--image 'none.png': there is no such file"),
        (["img2img", "-i", "http://169.254.169.254/a.png"], 3, "there is no such file"),
        (["img2img", "-i", "image.png", "--strength", "0.1"], 2, "less than one step"),
        (["img2img", "-i", "image.png", "--resize-mode", "fit"], 2, "crop, stretch, pad"),
        (["outpaint", "-i", "image.png"], 2, "nothing to add"),
        (["inpaint", "-i", "image.png", "--mask", "mask.png", "--mask-mode", "hard"], 2, "binary, soft"),
        (["inpaint", "-i", "image.png", "--mask", "mask.png", "--mask-blur", "3"], 2, "mask_mode 'soft'"),
        (["inpaint", "-i", "image.png", "--mask", "mask.png", "--no-latent-blend"], 2, "inpainting model"),
        (["inpaint", "-i", "image.png", "--mask", "mask.png", "--resample", "-1"], 2, "resample -1"),
        (["generate", "--upscaler", "lanczos"], 2, "--upscaler belongs to the second pass; give --hires too"),
        (["generate", "--hires", "1"], 2, "scale 1 does not enlarge"),
        (["generate", "--variation-seed", "1"], 2, "variation_strength"),
    ],
)
def test_mistakes(run, capsys, arguments, code, words):
    assert run(*arguments) == code
    out, err = capsys.readouterr()
    assert out == "" and words in err and err.count("\n") == 1
