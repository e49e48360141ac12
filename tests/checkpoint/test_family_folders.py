"""Folders of every family: ours and back, in diffusers and from it, and what is refused or passed over."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open

from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder, save_folder
from latent_diffusion.errors import CheckpointError, LatentDiffusionWarning

CLASSES = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sd2_v": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sdxl_refiner": "StableDiffusionXLImg2ImgPipeline",
    "sd1_inpaint": "StableDiffusionInpaintPipeline",
    "sd2_inpaint": "StableDiffusionInpaintPipeline",
    "sdxl_inpaint": "StableDiffusionXLInpaintPipeline",
}
TOKENIZER_FILES = {"vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}


def tensors(components) -> dict[str, torch.Tensor]:
    """Every weight of a model, under a name of its own."""
    texts = {f"text {k}": tower.model for k, tower in enumerate(components.text_encoder.towers)}
    parts = {"unet": components.unet, "vae": components.autoencoder, **texts}
    return {f"{part} {name}": t for part, model in parts.items() for name, t in model.state_dict().items()}


def same(first, second) -> bool:
    a, b = tensors(first), tensors(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def edit(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("family", CLASSES)
def test_folder_ours_folder(family, tiny_family, tmp_path):
    source, again = tiny_family(family), tmp_path / "again"
    first = load_folder(source)
    save_folder(first, again)
    second = load_folder(again)
    assert same(first, second)
    assert (first.unet.config, first.autoencoder.config) == (second.unet.config, second.autoencoder.config)
    assert first.zeros_for_empty_prompt == second.zeros_for_empty_prompt == (family in ("sdxl", "sdxl_inpaint"))
    assert (first.schedule, first.prediction) == (second.schedule, second.prediction)
    assert not first.notes
    for file in sorted(source.rglob("*")):
        if file.is_file():
            assert (again / file.relative_to(source)).read_bytes() == file.read_bytes(), file


@pytest.mark.parametrize("family", CLASSES)
def test_what_is_written_for_other_tools(family, tiny_family):
    folder = tiny_family(family)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == CLASSES[family]
    assert index.get("requires_aesthetics_score", False) == (family == "sdxl_refiner")
    assert ("safety_checker" in index) == (not family.startswith("sdxl"))
    for part in ("text_encoder", "text_encoder_2"):
        there = index.get(part, [None, None]) != [None, None]
        assert (folder / part).is_dir() == there
        if there:
            with safe_open(folder / part / "model.safetensors", "pt") as file:
                names, metadata = set(file.keys()), file.metadata()
            assert metadata == {"format": "pt"}
            assert {n for n in names if not n.startswith("text_model.")} == (
                {"text_projection.weight"} if part == "text_encoder_2" else set()
            )
            tokenizer = folder / part.replace("text_encoder", "tokenizer")
            assert {file.name for file in tokenizer.iterdir()} == TOKENIZER_FILES
            values = json.loads((tokenizer / "tokenizer_config.json").read_text())
            padded_by_zero = part == "text_encoder_2" or family.startswith("sd2")
            assert values["model_max_length"] == 77 and values["pad_token"] == (
                "!" if padded_by_zero else "<|endoftext|>"
            )


@pytest.mark.parametrize("family", ["sd2_v", "sdxl", "sdxl_refiner", "sdxl_inpaint"])
def test_what_diffusers_writes_opens(family, tiny_family, tmp_path):
    """In half precision as a variant, and in shards."""
    from diffusers import DiffusionPipeline

    ours = load_folder(tiny_family(family))
    pipe = DiffusionPipeline.from_pretrained(tiny_family(family), local_files_only=True)
    assert type(pipe).__name__ == CLASSES[family]
    pipe.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    part = "text_encoder_2" if family.startswith("sdxl") else "text_encoder"
    for place in ("unet", part):
        assert len(list((tmp_path / "sharded" / place).glob("*.safetensors"))) > 1
    assert same(load_folder(tmp_path / "sharded"), ours)
    pipe.save_pretrained(tmp_path / "variant", variant="fp16", max_shard_size="60KB")
    assert list((tmp_path / "variant" / "unet").glob("*.fp16*"))
    assert same(load_folder(tmp_path / "variant"), ours)


def test_parts_that_draw_nothing_are_said(tiny_family, tmp_path):
    folder = shutil.copytree(tiny_family("sd1"), tmp_path / "model")
    edit(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPFeatureExtractor"],
    )
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "pytorch_model.bin").write_bytes(b"\x80\x04.")  # never opened
    with pytest.warns(LatentDiffusionWarning, match="not used: feature_extractor, safety_checker") as told:
        found = load_folder(folder)
    ours = [warning for warning in told if warning.category is LatentDiffusionWarning]
    assert len(ours) == 1 and found.notes == ("not used: feature_extractor, safety_checker",)


def test_a_fast_tokenizer_and_old_configs_are_the_same_model(tiny_family, tmp_path):
    """As in folders of 2022."""
    folder = shutil.copytree(tiny_family("sdxl"), tmp_path / "model")
    edit(folder / "model_index.json", tokenizer_2=["transformers", "CLIPTokenizerFast"])
    edit(folder / "text_encoder" / "config.json", eos_token_id=2, projection_dim=5)
    assert same(load_folder(folder), load_folder(tiny_family("sdxl")))


FAULTS = {
    "no second text encoder": ("model_index.json", {"text_encoder_2": None, "tokenizer_2": None}, "text_encoder_2"),
    "text model without projection": (
        "model_index.json",
        {"text_encoder_2": ["transformers", "CLIPTextModel"]},
        "only .*CLIPTextModelWithProjection",
    ),
    "another pipeline": ("model_index.json", {"_class_name": "FluxPipeline"}, "'FluxPipeline'; supported are"),
    "half of the added embedding": ("unet/config.json", {"addition_time_embed_dim": None}, "addition_embed_type"),
    "another added embedding": ("unet/config.json", {"addition_embed_type": "text_image"}, "'text_image'"),
    "layers for other levels": ("unet/config.json", {"transformer_layers_per_block": [1, 2]}, "has 2 entries for 3"),
    "an absurd layer": ("unet/config.json", {"transformer_layers_per_block": [1, 2, 10**6]}, "integers from 1 to 64"),
    "sizes of another width": ("unet/config.json", {"addition_time_embed_dim": 16}, "5 or 6 sizes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refused_by_name(fault, tiny_family, tmp_path):
    file, values, words = FAULTS[fault]
    folder = shutil.copytree(tiny_family("sdxl"), tmp_path / "model")
    edit(folder / file, **values)
    with pytest.raises(CheckpointError, match=words) as told:
        load_folder(folder)
    assert str(folder) in str(told.value)
