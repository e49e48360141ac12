"""Pictures of other tools: what they say of themselves, in our words; strangers' texts harm nobody."""

import json
import time

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latent_diffusion.errors import DataError
from latent_diffusion.provenance.foreign import read_found
from latent_diffusion.provenance.picture_file import open_texts

A1111 = """a (red:1.2) apple, <lora:ink:0.8>
on a table
Negative prompt: blurry
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 42, Size: 512x768, Model hash: 6ce0161689, \
Model: v1-5-pruned, Denoising strength: 0.6, Clip skip: 2, RNG: CPU, Mask blur: 4, Inpaint area: Only masked, \
Lora hashes: "ink: 0123456789ab", Version: v1.10.1"""
OLD = "a cat\nSteps: 30, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"
GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 5, "steps": 25, "cfg": 6.5, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0,
            "model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 640, "height": 512, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["11", 0], "clip": ["10", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "ugly", "clip": ["10", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "images": ["8", 0]}},
    "10": {"class_type": "LoraLoader", "inputs": {"lora_name": "ink", "strength_model": 0.7, "model": ["4", 0]}},
    "11": {"class_type": "PrimitiveString", "inputs": {"value": "a fox"}},
}  # fmt: skip
INVOKE = {
    "generation_mode": "txt2img", "positive_prompt": "a hen", "negative_prompt": "text", "width": 512, "height": 512,
    "seed": 9, "cfg_scale": 7.5, "steps": 28, "scheduler": "euler_a", "clip_skip": 0, "app_version": "4.2.9",
    "model": {"name": "dreamshaper", "base": "sd-1"}, "loras": [{"model": {"name": "ink"}, "weight": 0.5}],
}  # fmt: skip
NOVEL = {
    "prompt": "1girl", "steps": 28, "height": 1216, "width": 832, "scale": 5.0, "seed": 77,
    "sampler": "k_euler_ancestral", "noise_schedule": "karras", "uc": "lowres", "sm": False,
}  # fmt: skip
FOOOCUS = {
    "prompt": "a hut", "negative_prompt": "", "full_prompt": ["a hut", "cinematic"], "resolution": "(1152, 896)",
    "steps": 30, "guidance_scale": 4, "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras", "seed": "123",
    "base_model": "juggernautXL", "base_model_hash": "aeb7e9e689", "performance": "Speed",
}  # fmt: skip


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_named_and_become_no_option(number):
    invoke = json.dumps(INVOKE).replace('"cfg_scale": 7.5', f'"cfg_scale": {number}')
    graph = json.dumps({**GRAPH, "12": {"class_type": "Note", "is_changed": [float("nan")]}})
    graph = graph.replace('"cfg": 6.5', f'"cfg": {number}')
    for name, texts in (("cfg_scale", {"invokeai_metadata": invoke}), ("cfg", {"prompt": graph})):
        found = read_found(texts, None)
        assert "guidance_scale" not in found.options and found.options["seed"] in (5, 9)
        assert found.other["not finite, left out"] == f"{name} {number}"
        json.dumps([found.options, found.other], allow_nan=False)


def test_a1111():
    found = read_found({}, A1111)
    assert (found.tool, found.prompt) == ("A1111", "a (red:1.2) apple, <lora:ink:0.8>\non a table")
    assert found.negative_prompt == "blurry"
    assert found.options == {
        "sampler": "dpmpp_2m", "spacing": "Karras", "num_inference_steps": 20, "guidance_scale": 7.5, "seed": 42,
        "width": 512, "height": 768, "model": "v1-5-pruned", "model_hash": "6ce0161689", "strength": 0.6,
        "clip_skip": 1, "noise": "CPU", "emphasis": "a1111", "inpaint_area": "masked",
    }  # fmt: skip
    assert found.other == {"Mask blur": "4", "Lora hashes": "ink: 0123456789ab", "Version": "v1.10.1"}
    old = read_found({}, OLD).options
    assert (old["sampler"], old["spacing"], old["noise"]) == ("euler_ancestral", "Automatic", "GPU")
    assert "clip_skip" not in old
    suffixed = read_found({}, OLD.replace("Euler a", "DPM++ SDE Karras")).options
    assert (suffixed["sampler"], suffixed["spacing"]) == ("dpmpp_sde", "karras")


def test_comfyui():
    found = read_found({"prompt": json.dumps(GRAPH), "workflow": "{}"}, None)
    assert (found.tool, found.prompt, found.negative_prompt) == ("ComfyUI", "a fox", "ugly")
    assert found.options == {
        "seed": 5, "num_inference_steps": 25, "guidance_scale": 6.5, "sampler": "dpmpp_2m", "spacing": "karras",
        "strength": 1.0, "width": 640, "height": 512, "model": "sd15.safetensors", "emphasis": "comfy",
    }  # fmt: skip
    assert found.other == {"LoRA ink": "0.7"}


def test_comfyui_names_its_last_sampler():
    second = {**GRAPH["3"], "inputs": {**GRAPH["3"]["inputs"], "steps": 8, "latent_image": ["3", 0]}}
    graph = {**GRAPH, "12": second, "8": {"class_type": "VAEDecode", "inputs": {"samples": ["12", 0]}}}
    found = read_found({"prompt": json.dumps(graph)}, None)
    assert found.options["num_inference_steps"] == 8 and found.other["samplers"].startswith("2")


def test_invokeai():
    found = read_found({"invokeai_metadata": json.dumps(INVOKE)}, None)
    assert (found.tool, found.prompt, found.negative_prompt) == ("InvokeAI", "a hen", "text")
    assert found.options["sampler"] == "euler_ancestral" and found.options["model"] == "dreamshaper"
    assert "clip_skip" not in found.options and "loras" in found.other


def test_novelai():
    chunks = {"Software": "NovelAI", "Description": "1girl", "Source": "V3", "Comment": json.dumps(NOVEL)}
    found = read_found(chunks, None)
    assert (found.tool, found.prompt, found.negative_prompt) == ("NovelAI", "1girl", "lowres")
    assert (found.options["sampler"], found.options["spacing"]) == ("euler_ancestral", "karras")
    assert (found.options["width"], found.options["height"], found.options["model"]) == (832, 1216, "V3")
    assert read_found({"Comment": json.dumps({"prompt": "x"})}, None) is None  # anyone's comment


def test_fooocus():
    found = read_found({"fooocus_scheme": "fooocus"}, json.dumps(FOOOCUS))
    assert (found.tool, found.prompt) == ("Fooocus", "a hut\ncinematic")
    assert (found.options["width"], found.options["height"]) == (1152, 896)
    assert (found.options["sampler"], found.options["seed"]) == ("dpmpp_2m_sde", 123)
    assert read_found({"fooocus_scheme": "a1111"}, OLD).tool == "Fooocus"


HOSTILE = [
    "{", "[]", "null", "9" * 5000, "[" * 100_000, '{"a":' * 50_000, "<script>alert(1)</script>",
    json.dumps({"1": {"class_type": "KSampler", "inputs": {"steps": 1, "positive": ["1", 0], "seed": [1]}}}),
    json.dumps({str(k): {"class_type": "X", "inputs": {"a": [str((k * 7) % 5000), 0]}} for k in range(5000)}),
    json.dumps({"1": {"class_type": None, "inputs": {"text": ["2", 0], "positive": [["1"], 0]}}, "2": 7}),
    json.dumps({"seed": 1e300, "steps": True, "cfg_scale": "nan", "width": "9" * 9000, "model": {"name": {}}}),
    json.dumps({"positive_prompt": {"a": 1}, "model": [1], "resolution": [1], "prompt": 5, "uc": 3, "sampler": None}),
    "x" * 10_000_000, "a\nb: c, d: " + '"' * 100_000, "Steps: x, Sampler: y, Seed: -1e999, Size: 3x",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:20])
def test_hostile_texts_are_read_in_a_moment_or_not_at_all(text):
    start = time.process_time()
    for key in ("prompt", "invokeai_metadata", "Comment"):
        read_found({key: text, "Software": "NovelAI"}, None)
    read_found({}, text)
    assert time.process_time() - start < 2


def test_a_picture_with_ten_megabytes_of_text_is_a_picture(tmp_path):
    info = PngInfo()
    info.add_text("parameters", "x" * 10_000_000)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=info)
    texts = open_texts(tmp_path / "a.png")
    assert read_found(texts.chunks, texts.parameters) is None
    bomb = PngInfo()
    bomb.add_text("parameters", "x" * 10_000_000, zip=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png", pnginfo=bomb)
    with pytest.raises(DataError, match=r"b\.png"):
        open_texts(tmp_path / "b.png")
