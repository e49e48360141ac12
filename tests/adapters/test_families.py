"""SD 2, SDXL and its refiner: every part finds its changes, and diffusers makes the same of the same file."""

import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from latent_diffusion.adapters.lora_file import read_lora
from latent_diffusion.adapters.model_parts import original_paths, parts_of
from latent_diffusion.adapters.stack import Stack
from latent_diffusion.adapters.word_file import read_words
from latent_diffusion.adapters.words import with_words
from latent_diffusion.adapters.writing import write_lora
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder
from latent_diffusion.errors import CheckpointError, LatentDiffusionWarning

TOWERS = {"sd2": ["text_encoder"], "sdxl": ["text_encoder", "text_encoder_2"], "sdxl_refiner": ["text_encoder_2"]}


@pytest.mark.parametrize("layout", ["kohya", "original", "peft"])
@pytest.mark.parametrize("family", list(TOWERS))
def test_every_part_finds_its_changes(family, layout, tiny_family, random_lora, tmp_path):
    components = load_folder(tiny_family(family))
    assert list(parts_of(components)) == ["unet", *TOWERS[family]]
    updates = random_lora(components=components)
    if layout == "original":
        names = original_paths(components)
        renamed = {"unet": {names[path]: update for path, update in updates["unet"].items()}}
        write_lora(tmp_path / "x.safetensors", {**updates, **renamed})
    else:
        write_lora(tmp_path / "x.safetensors", updates, layout)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LatentDiffusionWarning)
        adapter = read_lora(tmp_path / "x.safetensors", components)
    assert {part: changes.keys() for part, changes in adapter.updates.items()} == {
        part: changes.keys() for part, changes in updates.items()
    }


@pytest.mark.parametrize("layout", ["kohya", "peft"])
def test_sdxl_in_diffusers(layout, tiny_family, random_lora, tmp_path):
    pytest.importorskip("peft")
    from diffusers import StableDiffusionXLPipeline

    components = load_folder(tiny_family("sdxl"))
    write_lora(tmp_path / "x.safetensors", random_lora(components=components), layout)
    theirs = StableDiffusionXLPipeline.from_pretrained(tiny_family("sdxl"), add_watermarker=False)
    theirs.load_lora_weights(tmp_path / "x.safetensors", adapter_name="x")
    theirs.fuse_lora(components=["unet", "text_encoder", "text_encoder_2"], lora_scale=0.6)
    theirs.unload_lora_weights()
    changed = Stack().load(read_lora(tmp_path / "x.safetensors", components), 0.6).apply(components)
    for part, module in parts_of(changed).items():
        wanted = {name.removeprefix("text_model."): t for name, t in getattr(theirs, part).named_parameters()}
        plain = dict(parts_of(components)[part].named_parameters())
        assert any(t is not plain[name] for name, t in module.named_parameters())
        for name, tensor in module.named_parameters():
            torch.testing.assert_close(tensor, wanted[name.removeprefix("text_model.")], rtol=1e-5, atol=1e-6)


def test_a_learned_word_of_sdxl_in_diffusers(tiny_family, tmp_path):
    from diffusers import StableDiffusionXLPipeline

    components = load_folder(tiny_family("sdxl"))
    draw = torch.Generator().manual_seed(0)
    first, second = components.text_encoder.towers
    rows = {
        "clip_l": torch.randn(2, first.width, generator=draw),
        "clip_g": torch.randn(2, second.width, generator=draw),
    }
    save_file(rows, tmp_path / "zorp.safetensors")
    theirs = StableDiffusionXLPipeline.from_pretrained(tiny_family("sdxl"), add_watermarker=False)
    values = load_file(tmp_path / "zorp.safetensors")
    theirs.load_textual_inversion(
        values["clip_l"], token="zorp", text_encoder=theirs.text_encoder, tokenizer=theirs.tokenizer
    )
    theirs.load_textual_inversion(
        values["clip_g"], token="zorp", text_encoder=theirs.text_encoder_2, tokenizer=theirs.tokenizer_2
    )
    with torch.no_grad():
        states, _, pooled, _ = theirs.encode_prompt("a zorp cat", device="cpu", do_classifier_free_guidance=False)
        found = with_words(components, read_words(tmp_path / "zorp.safetensors", components)).text_encoder(
            ["a zorp cat"]
        )
    torch.testing.assert_close(found.context, states, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-5, atol=1e-5)


def test_files_of_another_family_are_refused_with_its_name(tiny_family, tiny_components, random_lora, tmp_path):
    refiner = load_folder(tiny_family("sdxl_refiner"))
    metadata = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
    write_lora(tmp_path / "x.safetensors", random_lora(parts=["text_encoder"]), metadata=metadata)
    with pytest.raises(CheckpointError, match="made for SDXL"):
        read_lora(tmp_path / "x.safetensors", refiner)
