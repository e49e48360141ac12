"""Hostile and clumsy use of the commands: one line, the right exit code, and no picture lost that was computed."""

import json
import os
import struct

import numpy as np
import pytest
from PIL import Image

from latent_diffusion.cli.main import main
from latent_diffusion.cli.output import plan_files
from latent_diffusion.cli.picture_files import read_prompts_file, write_pictures
from latent_diffusion.errors import DataError, ResourceError
from latent_diffusion.pipeline.pipeline import Output
from latent_diffusion.provenance.picture_file import read_texts, write_picture
from latent_diffusion.provenance.record import Record

LONG = "a" * 300


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test works in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(size=(8, 8), prompt="a cat") -> Output:
    """One picture, with its record."""
    record = Record(
        model="m", prompt=prompt, negative_prompt=prompt, seed=1, num_inference_steps=1, guidance_scale=1.0,
        guidance_rescale=0.0, sampler="ddim", spacing="leading", eta=0.0, clip_skip=None, width=8, height=8,
        work_width=8, work_height=8, dtype="float32", device="cpu",
    )  # fmt: skip
    return Output([Image.new("RGB", size)], [1], [record])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["generate", "a cat", "--model", LONG], 4),
        (["info", LONG], 4),
        (["generate", "a cat", "--output", f"{LONG}.png"], 6),
        (["generate", "a cat", "--output", LONG], 6),
        (["generate", "a cat", "--output", f"{'a' * 250}.png", "--num-images", "2"], 6),
    ],
)
def test_names_too_long_for_a_file(arguments, code, capsys):
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "a bug in this package" not in err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--padding", "9" * 400], 2), (["--steps", "9" * 400], 2), (["--strength", "nan"], 2), (["--image", LONG], 3)],
)
def test_mistakes_of_inpaint(tiny_folder, here, arguments, code, capsys):
    Image.new("L", (16, 16), 255).save(here / "a.png")
    base = ["inpaint", "a", "--image", "a.png", "--mask", "a.png", "--model", str(tiny_folder), "--steps", "1"]
    assert main([*base, *arguments]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "a bug in this package" not in err


def test_too_many_prompts_are_refused_before_the_model_is_read(here, capsys):
    (here / "prompts.txt").write_text("a cat\n" * 6000)
    assert main(["generate", "--prompts-file", "prompts.txt", "--num-images", "2"]) == 2
    assert "10000" in capsys.readouterr().err


def test_prompts_files(here, monkeypatch):
    (here / "windows.txt").write_bytes("\ufeffa cat\r\n\r\na dog\r\n".encode())
    assert read_prompts_file(here / "windows.txt") == ["a cat", "a dog"]
    os.mkfifo(here / "pipe")
    for path in (here / "pipe", here):
        with pytest.raises(DataError, match="regular file"):
            read_prompts_file(path)
    monkeypatch.setattr("latent_diffusion.cli.picture_files.MAX_PROMPTS_FILE", 10)
    with pytest.raises(DataError, match="at most 10"):
        read_prompts_file(here / "windows.txt")


def test_two_runs_of_one_second_and_one_folder_both_keep_their_picture(here, capsys):
    (first,) = plan_files(here, 1, 1)
    first.write_bytes(b"of the other run")
    write_pictures(picture(), [first], named=False)
    assert first.read_bytes() == b"of the other run" and len(list(here.glob("*.png"))) == 2
    with pytest.raises(ResourceError, match="nothing is overwritten"):
        write_pictures(picture(), [first], named=True)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".png"])
@pytest.mark.parametrize("prompt", ["\U0001f600" * 10_000, "half \udcff", "\0\x1b[31m"])
def test_no_prompt_is_too_strange_for_a_file(here, suffix, prompt, recwarn):
    out = picture(prompt=prompt)
    write_picture(out.images[0], here / f"a{suffix}", out.records[0])
    text = read_texts(here / f"a{suffix}")[0]
    assert text and "Steps: 1" in text and "Seed: 1" in text


@pytest.mark.parametrize(("suffix", "side"), [(".webp", 16_384), (".jpg", 65_536)])
def test_a_picture_too_large_for_its_format_is_no_bug_in_this_package(here, suffix, side):
    with pytest.raises(ValueError, match=r"use \.png"):
        write_picture(Image.new("RGB", (side, 1)), here / f"a{suffix}")
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000, b"[]", b"7", b'{"a": 1}',
        b'{"a": {"dtype": ["F32"], "shape": ["x"], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": []}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]}}',
    ],
)  # fmt: skip
def test_info_on_broken_weights(tiny_folder, here, header, capsys):
    import shutil

    shutil.copytree(tiny_folder, here / "m")
    (here / "m/unet/diffusion_pytorch_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"0000")
    assert main(["info", "m"]) == 4
    assert "a bug in this package" not in capsys.readouterr().err


@pytest.mark.parametrize("blocks", [[], 5, "x", [64] * 10_000])
def test_info_on_broken_configs(tiny_folder, here, blocks, capsys):
    import shutil

    shutil.copytree(tiny_folder, here / "m")
    file = here / "m/vae/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"block_out_channels": blocks}))
    assert main(["info", "m"]) == 4
    file.write_text("[" * 100_000)
    assert main(["info", "m"]) == 4
    shutil.rmtree(here / "m/text_encoder")
    assert main(["info", "m"]) == 4
    assert "a bug in this package" not in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:nothing to repaint. strength is 0")
def test_inpainting_drops_a_colour_profile_that_is_not_of_rgb(here, tiny_pipeline):
    grey, rgb = bytes(16) + b"GRAY" + bytes(108), bytes(16) + b"RGB " + bytes(108)
    mask = Image.fromarray(np.eye(16, dtype=np.uint8) * 255)
    for profile, kept in ((grey, None), (rgb, rgb)):
        Image.new("RGB", (16, 16)).save(here / "a.png", icc_profile=profile)
        for strength in (0.0, 1.0):
            (made,) = tiny_pipeline.inpaint(
                "", image=here / "a.png", mask_image=mask, strength=strength, num_inference_steps=1, seed=1
            ).images
            assert made.info.get("icc_profile") == kept
