"""What made a picture: into the file and back, whatever the prompt holds."""

import dataclasses
import hashlib
import io
import json
import time

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import latent_diffusion.checkpoint.model_hash as hashes
from latent_diffusion.checkpoint.components import Applied
from latent_diffusion.checkpoint.model_hash import model_hash
from latent_diffusion.errors import ConfigError, DataError, LatentDiffusionWarning, ResourceError
from latent_diffusion.provenance.infotext import read_infotext, write_infotext
from latent_diffusion.provenance.picture_file import read_texts, write_picture
from latent_diffusion.provenance.record import InpaintRecord, Record

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
INPAINT = InpaintRecord(
    image_sha256="0" * 64,
    mask_sha256="1" * 64,
    strength=0.8,
    masked_content="noise",
    start_from="noised_image",
    padding=16,
    feather=2,
    box=(1, 2, 3, 4),
    steps_run=16,
)
PICTURE = Image.new("RGB", (4, 3), (1, 2, 3))


@pytest.mark.parametrize("prompt", ["a red apple", "línea\n日本語 \U0001f34e", "", '"quoted": {a, b}', None])
@pytest.mark.parametrize("inpaint", [None, INPAINT])
@pytest.mark.parametrize("suffix", [".png", ".PNG"])
def test_a_png_carries_its_record(tmp_path, prompt, inpaint, suffix):
    record = dataclasses.replace(RECORD, prompt=prompt, inpaint=inpaint)
    write_picture(PICTURE, tmp_path / f"a{suffix}", record)
    text, back = read_texts(tmp_path / f"a{suffix}")
    assert back == record
    assert text == write_infotext(record)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_other_formats_carry_both_in_exif(tmp_path, suffix):
    record = dataclasses.replace(RECORD, prompt="日本語 apple")
    write_picture(PICTURE, tmp_path / f"a{suffix}", record)
    assert read_texts(tmp_path / f"a{suffix}") == (write_infotext(record), record)


def test_the_text_is_what_a1111_writes():
    lines = write_infotext(dataclasses.replace(RECORD, inpaint=INPAINT)).split("\n")
    assert lines[0] == "a red apple, 3d"
    assert lines[1] == "Negative prompt: blurry: very"
    assert lines[3].startswith(
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 4294967295, Size: 64x64, "
        "Model: emoji, Denoising strength: 0.8, Clip skip: 2, RNG: CPU, Masked content: latent noise, "
    )


def test_values_with_commas_are_quoted():
    assert 'Model: "a, b: c"' in write_infotext(dataclasses.replace(RECORD, model="a, b: c"))


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


def test_a_jpeg_that_cannot_hold_all_of_it_says_so(tmp_path):
    record = dataclasses.replace(RECORD, prompt="日" * 9000, negative_prompt="本" * 9000)
    with pytest.warns(LatentDiffusionWarning, match="loses the exact record"):
        write_picture(PICTURE, tmp_path / "a.jpg", record)
    assert read_texts(tmp_path / "a.jpg") == (write_infotext(record), None)


@pytest.mark.parametrize("emphasis", ["a1111", "no-norm"])
def test_infotext_is_read_as_it_was_written(emphasis):
    adapters = (Applied("lora", "ink", "0" * 12, {"unet": 0.8, "text_encoder": 0.5}), Applied("embedding", "zorp", "1"))
    record = dataclasses.replace(
        RECORD, model="a, b: c", inpaint=INPAINT, adapters=adapters, emphasis=emphasis, model_hash="ab" * 32
    )
    info = read_infotext(write_infotext(dataclasses.replace(record, prompt="a (red) apple\nSteps: no")))
    assert info.prompt == "a (red) apple\nSteps: no <lora:ink:0.5:0.8>"
    assert info.negative_prompt == "blurry: very\nold"
    assert list(info.fields)[:8] == [
        "Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Model hash", "Model"
    ]  # fmt: skip
    assert info.fields["Model"] == "a, b: c" and info.fields["Model hash"] == "ababababab"
    assert info.fields["Lora hashes"] == "ink: 000000000000"
    assert ("Emphasis" in info.fields) == (emphasis == "no-norm")


def test_what_is_no_infotext_is_none():
    for text in ("", "a prompt", "a\nb: c, d: e", "x" * 2_000_000):
        assert read_infotext(text) is None
    start = time.process_time()
    for text in ("a" * 900_000, "a:" * 400_000, '"' * 900_000, 'a: "' * 200_000, "\n" * 900_000, " " * 900_000):
        read_infotext("p\n" + text)
    assert time.process_time() - start < 5


def test_the_hash_of_a_folder_is_that_of_its_lines(tmp_path):
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "model.safetensors").write_bytes(part.encode())
    lines = "".join(
        f"{hashlib.sha256(part.encode()).hexdigest()}  {part}/model.safetensors\n" for part in ("unet", "vae")
    )
    assert model_hash(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()
    assert model_hash(tmp_path / "unet" / "model.safetensors") == hashlib.sha256(b"unet").hexdigest()
    (tmp_path / "unet" / "model.safetensors").write_bytes(b"other")
    assert model_hash(tmp_path) != hashlib.sha256(lines.encode()).hexdigest()


def test_digests_of_large_models_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "WORTH_KEEPING", 1)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    found = model_hash(file)
    monkeypatch.setattr(hashes, "_known", {})
    monkeypatch.setattr(hashes, "_file_hash", None)  # would fail if it were made again
    assert model_hash(file) == found
    (tmp_path / "cache" / "latent_diffusion" / "hashes.json").write_text("{broken")
    monkeypatch.undo()
    monkeypatch.setattr(hashes, "_known", {})
    assert model_hash(file) == found


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Record)])
def test_a_field_of_another_type_is_named(field):
    for wrong in (-1e300, {"a": []}, [None], "\0"):
        text = json.dumps(json.loads(RECORD.to_json()) | {field: wrong})
        try:
            write_infotext(Record.from_json(text))
        except DataError as error:
            assert "record cannot be read" in str(error) and len(str(error)) < 300
