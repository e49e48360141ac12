"""What made a picture: into the file and back, whatever the prompt holds."""

import dataclasses
import io

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latent_diffusion.errors import ConfigError, DataError, ResourceError
from latent_diffusion.pipeline.picture_file import read_texts, write_picture
from latent_diffusion.pipeline.record import InpaintRecord, Record

RECORD = Record(
    model="emoji",
    prompt="a red apple, 3d",
    negative_prompt="blurry: very\nold",
    seed=4294967295,
    num_inference_steps=20,
    guidance_scale=7.5,
    guidance_rescale=0.0,
    sampler="dpmpp_2m",
    spacing="karras",
    eta=0.0,
    clip_skip=1,
    width=640,
    height=427,
    work_width=64,
    work_height=64,
    dtype="float32",
    device="cpu",
)
INPAINT = InpaintRecord("0" * 64, "1" * 64, 0.8, "noise", "noised_image", 16, 2, (1, 2, 3, 4), 16)
PICTURE = Image.new("RGB", (4, 3), (1, 2, 3))


@pytest.mark.parametrize("prompt", ["a red apple", "línea\n日本語 \U0001f34e", "", '"quoted": {a, b}', None])
@pytest.mark.parametrize("inpaint", [None, INPAINT])
@pytest.mark.parametrize("suffix", [".png", ".PNG"])
def test_a_png_carries_its_record(tmp_path, prompt, inpaint, suffix):
    record = dataclasses.replace(RECORD, prompt=prompt, inpaint=inpaint)
    write_picture(PICTURE, tmp_path / f"a{suffix}", record)
    text, back = read_texts(tmp_path / f"a{suffix}")
    assert back == record
    assert text == record.infotext()


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_other_formats_carry_the_text_in_exif(tmp_path, suffix):
    record = dataclasses.replace(RECORD, prompt="日本語 apple")
    write_picture(PICTURE, tmp_path / f"a{suffix}", record)
    assert read_texts(tmp_path / f"a{suffix}") == (record.infotext(), None)


def test_the_text_is_what_a1111_writes():
    lines = dataclasses.replace(RECORD, inpaint=INPAINT).infotext().split("\n")
    assert lines[0] == "a red apple, 3d"
    assert lines[1] == "Negative prompt: blurry: very"
    assert lines[3].startswith(
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 4294967295, Size: 64x64, "
        "Model: emoji, Denoising strength: 0.8, Clip skip: 2, RNG: CPU, Masked content: latent noise, "
    )


def test_values_with_commas_are_quoted():
    assert 'Model: "a, b: c"' in dataclasses.replace(RECORD, model="a, b: c").infotext()


def test_a_file_is_never_replaced_and_nothing_half_written_stays(tmp_path):
    (tmp_path / "a.png").write_bytes(b"mine")
    with pytest.raises(ResourceError, match="exists"):
        write_picture(PICTURE, tmp_path / "a.png", RECORD)
    assert (tmp_path / "a.png").read_bytes() == b"mine"
    with pytest.raises(ResourceError, match="cannot be written"):
        write_picture(PICTURE, tmp_path / "missing" / "a.png", RECORD)
    with pytest.raises(ConfigError, match=r"\.gif"):
        write_picture(PICTURE, tmp_path / "a.gif", RECORD)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", "null", '{"model": 1}', "9" * 5000, "[" * 5000])
def test_hostile_records_are_data_errors(tmp_path, text):
    info = PngInfo()
    info.add_text("latent_diffusion", text)
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG", pnginfo=info)
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    with pytest.raises(DataError):
        read_texts(tmp_path / "a.png")


def test_a_picture_without_texts(tmp_path):
    PICTURE.save(tmp_path / "a.png")
    assert read_texts(tmp_path / "a.png") == (None, None)
    (tmp_path / "b.png").write_text("no picture")
    for name in ("b.png", "c.png"):
        with pytest.raises(DataError, match=name):
            read_texts(tmp_path / name)
