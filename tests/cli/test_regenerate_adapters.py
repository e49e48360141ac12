"""Adapters that a picture of another tool names are found in --lora-folder: by name, by alias or by hash."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latent_diffusion.adapters.lora_file import hash_of
from latent_diffusion.checkpoint.files.safetensors_file import write_tensors
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder
from latent_diffusion.cli.main import main
from latent_diffusion.provenance.picture_file import read_texts

FIELDS = "Steps: 1, Sampler: Euler, Schedule type: Uniform, CFG scale: 7, Seed: 1, Size: 32x32, RNG: CPU"


@pytest.fixture
def model(tiny_family, here):
    """A tiny model, and a folder with an adapter for it."""
    folder = tiny_family("sd1")
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    unet = load_folder(folder).unet
    height, width = unet.state_dict()[f"{layer}.weight"].shape
    draw = torch.Generator().manual_seed(0)
    key = f"lora_unet_{layer.replace('.', '_')}"
    factors = {
        f"{key}.lora_down.weight": torch.randn(2, width, generator=draw),
        f"{key}.lora_up.weight": torch.randn(height, 2, generator=draw),
    }
    (here / "loras" / "styles").mkdir(parents=True)
    write_tensors(here / "loras" / "styles" / "ink_v2.safetensors", factors, {"ss_output_name": "ink"})
    return folder


def picture(**texts):
    """A PNG with these texts."""
    chunks = PngInfo()
    for key, text in texts.items():
        chunks.add_text(key, text)
    Image.new("RGB", (32, 32)).save("in.png", pnginfo=chunks)


def again(model, capsys, *more):
    """Make the picture again; return what was reported and the adapters with their strengths on the U-Net."""
    capsys.readouterr()
    code = main(["regenerate", "in.png", "--model", str(model), "--device", "cpu", *more, "-o", "out.png"])
    said = capsys.readouterr().err
    if code:
        return code, said, {}
    record = read_texts(Path("out.png"))[1]
    assert record is not None
    return code, said, {adapter.name: adapter.strengths["unet"] for adapter in record.adapters}


@pytest.mark.parametrize("name", ["ink_v2", "ink", "what the author had"])
def test_an_a1111_tag_by_name_alias_or_hash(model, here, capsys, name):
    digest = hash_of(here / "loras" / "styles" / "ink_v2.safetensors")
    picture(parameters=f'a cat <lora:{name}:0.5>\n{FIELDS}, Lora hashes: "{name}: {digest}, other: 0123456789ab"')
    code, said, found = again(model, capsys, "--lora-folder", "loras")
    assert (code, found) == (0, {name: 0.5})
    assert "not honoured" not in said


def test_a_tag_that_nothing_finds_is_an_error(model, here, capsys):
    picture(parameters=f'a cat <lora:lost:0.5>\n{FIELDS}, Lora hashes: "lost: 0123456789ab"')
    code, said, _ = again(model, capsys, "--lora-folder", "loras")
    assert code == 2 and "no adapter 'lost'" in said and not (here / "out.png").exists()


def graph(**lora):
    link = {"model": ["4", 0], "positive": ["6", 0], "negative": ["6", 0], "latent_image": ["5", 0]}
    return json.dumps({
        "3": {"class_type": "KSampler", "inputs": {
            "seed": 1, "steps": 1, "cfg": 7, "sampler_name": "euler", "scheduler": "normal", "denoise": 1, **link}},
        "4": {"class_type": "LoraLoader", "inputs": lora},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 32, "height": 32}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["4", 1]}},
    })  # fmt: skip


@pytest.mark.parametrize("file", ["ink_v2.safetensors", "styles\\ink_v2.safetensors", "styles/ink_v2.safetensors"])
def test_a_loader_of_comfyui_names_the_file(model, here, capsys, file):
    picture(prompt=graph(lora_name=file, strength_model=0.5, strength_clip=0.25))
    code, said, found = again(model, capsys, "--lora-folder", "loras")
    assert code == 0 and "not honoured" not in said
    assert list(found.values()) == [0.5]
    with_it = (here / "out.png").read_bytes()
    (here / "out.png").unlink()
    code, said, found = again(model, capsys)
    assert code == 0 and not found and "not honoured: LoRA" in said and "give --lora-folder" in said
    assert (here / "out.png").read_bytes() != with_it


def test_a_loader_whose_file_is_not_there(model, here, capsys):
    picture(prompt=graph(lora_name="lost.safetensors", strength_model=1, strength_clip=1))
    code, said, found = again(model, capsys, "--lora-folder", "loras")
    assert code == 0 and not found and "not honoured: LoRA lost: " in said and "no adapter 'lost'" in said
