"""Where other tools keep their texts in a file: PNG chunks, EXIF fields and comments of JPEG and WebP."""

import json
import os

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latent_diffusion.cli.main import main
from latent_diffusion.errors import DataError
from latent_diffusion.pipeline.regenerate import plan_of_found
from latent_diffusion.provenance.foreign import read_found
from latent_diffusion.provenance.picture_file import open_texts

GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 5, "steps": 25, "cfg": 6.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
            "positive": ["6", 0], "negative": ["7", 0],
        },
    },
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox"}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "ugly"}},
}  # fmt: skip
INFOTEXT = "a fox\nNegative prompt: ugly\nSteps: 25, Sampler: Euler, CFG scale: 6.5, Seed: 5, Size: 64x64"
SWARM = {
    "sui_image_params": {
        "prompt": "a fox", "negativeprompt": "ugly", "model": "some", "seed": 5, "steps": 25, "cfgscale": 6.5,
        "width": 64, "height": 64, "sampler": "euler", "scheduler": "normal", "swarm_version": "0.9.6.0",
    }
}  # fmt: skip


def saved(path, texts=(), exif=()):
    """Write a grey picture with these texts of a PNG, or these EXIF fields."""
    info, tags = PngInfo(), Image.Exif()
    for key, text in dict(texts).items():
        info.add_text(key, text)
    for tag, value in dict(exif).items():
        (tags.get_ifd(0x8769) if tag > 0x9000 else tags)[tag] = value
    picture = Image.new("RGB", (64, 64), "gray")
    picture.save(path, **({"pnginfo": info} if path.suffix == ".png" else {"exif": tags}))
    return path


def found_in(path):
    texts = open_texts(path)
    return read_found(texts.chunks, texts.parameters)


@pytest.mark.parametrize("suffix", [".webp", ".jpg"])
@pytest.mark.parametrize(
    "fields",
    [
        {0x0110: "prompt:" + json.dumps(GRAPH), 0x010F: "workflow:{}"},
        {0x010F: "Prompt: " + json.dumps(GRAPH)},
        {0x9286: b"ASCII\0\0\0" + json.dumps({"prompt": GRAPH, "workflow": {}}).encode()},
        {0x9286: b"ASCII\0\0\0" + json.dumps({"prompt": json.dumps(GRAPH)}).encode()},
    ],
    ids=["camera", "make", "comment", "comment, texts"],
)
def test_graphs_of_comfyui_in_webp_and_jpeg(tmp_path, suffix, fields):
    found = found_in(saved(tmp_path / f"a{suffix}", exif=fields))
    assert (found.tool, found.prompt, found.negative_prompt) == ("ComfyUI", "a fox", "ugly")
    assert found.options["seed"] == 5


@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
def test_a_byte_order_mark_is_no_part_of_the_prompt(tmp_path, order):
    comment = b"UNICODE\0" + ("\ufeff" + INFOTEXT).encode(order)
    assert found_in(saved(tmp_path / "a.jpg", exif={0x9286: comment})).prompt == "a fox"


def test_swarmui(tmp_path):
    of_png = found_in(saved(tmp_path / "a.png", {"parameters": json.dumps(SWARM)}))
    of_jpeg = found_in(saved(tmp_path / "a.jpg", exif={0x9286: b"ASCII\0\0\0" + json.dumps(SWARM).encode()}))
    assert of_png == of_jpeg and (of_png.tool, of_png.prompt, of_png.negative_prompt) == ("SwarmUI", "a fox", "ugly")
    plan = plan_of_found(of_png)
    assert plan.arguments["seed"] == [5] and plan.arguments["sampler"] == "euler" and not plan.missing


@pytest.mark.parametrize(
    "values",
    [{"Prompt": "a fox", "Negative": "ugly", "software": "RuinedFooocus"}, {"prompt": "a fox", "steps": 20}, {}],
)
def test_json_of_a_tool_that_is_not_known_is_not_drawn_from(tmp_path, capsys, values):
    path = saved(tmp_path / "a.png", {"parameters": json.dumps(values)})
    assert found_in(path) is None
    assert main(["regenerate", str(path), "--model", "emoji", "-o", str(tmp_path / "b.png")]) == 3
    assert "has no record of how it was made" in capsys.readouterr().err and not (tmp_path / "b.png").exists()


def test_invokeai_1_and_2(tmp_path):
    first = found_in(saved(tmp_path / "a.png", {"Dream": '"a fox [ugly]" -s 50 -S 123 -W 512 -H 640 -C 7.5 -A k_lms'}))
    image = {
        "prompt": [{"prompt": "a fox [ugly]", "weight": 1}], "steps": 50, "seed": 123, "width": 512, "height": 640,
        "cfg_scale": 7.5, "sampler": "k_lms", "type": "txt2img",
    }  # fmt: skip
    second = found_in(saved(tmp_path / "b.png", {"sd-metadata": json.dumps({"model_weights": "sd", "image": image})}))
    for found in (first, second):
        assert (found.tool, found.prompt, found.negative_prompt) == ("InvokeAI", "a fox", "ugly")
        assert found.options["sampler"] == "lms" and found.options["seed"] == 123
        assert (found.options["width"], found.options["height"]) == (512, 640)


def test_values_with_line_breaks_do_not_hide_the_others():
    text = INFOTEXT + ", Wildcard prompt: a __fruit__,\non a table, Version: v1.5.1"
    found = read_found({}, text)
    assert (found.prompt, found.negative_prompt) == ("a fox", "ugly")
    assert found.options["seed"] == 5 and found.other["Version"] == "v1.5.1"


@pytest.mark.parametrize(
    ("field", "scale", "named"),
    [
        ("Hires upscale: 1.5", 1.5, False),
        ("Hires resize: 128x128", 2.0, False),
        ("Hires resize: 128x0", 2.0, False),
        ("Hires resize: 128x96", 2.0, True),  # cut off there
    ],
)
def test_hires_by_factor_or_by_size(field, scale, named):
    """A1111 writes "Hires resize" where a size was given; a side of 0 follows the other (modules/processing.py)."""
    plan = plan_of_found(
        read_found({}, f"{INFOTEXT}, Denoising strength: 0.7, RNG: CPU, {field}, Hires upscaler: Latent")
    )
    assert (plan.method, plan.inputs, plan.arguments["scale"]) == ("hires", (), scale)
    assert any("Hires resize" in line for line in plan.missing) == named


def test_a1111_emphasis_ignore_and_its_refiner():
    text = f"{INFOTEXT}, RNG: CPU, Emphasis: Ignore, Refiner: xl-refiner [0123456789], Refiner switch at: 0.75"
    plan = plan_of_found(read_found({}, text))
    assert plan.arguments["emphasis"] == "ignore"
    assert (plan.refiner, plan.refined_below, plan.missing) == ("xl-refiner", 250.0, ())


@pytest.mark.timeout(60)
@pytest.mark.parametrize("command", ["info", "regenerate"])
def test_a_pipe_in_the_place_of_a_picture_is_not_waited_for(tmp_path, command):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match="regular file"):
        open_texts(tmp_path / "a.png")
    assert main([command, str(tmp_path / "a.png")]) != 0


def test_a_picture_that_does_not_name_its_model(tmp_path, capsys):
    path = saved(tmp_path / "a.png", {"parameters": INFOTEXT})
    assert main(["regenerate", str(path)]) == 4
    assert "names no model" in capsys.readouterr().err
