"""CLIP trained on from published folders: what is read computes the same, and what is written opens elsewhere."""

import json
from pathlib import Path

import pytest
import real
import torch
from processes import assert_equal_states, losses_of, train, train_together

from latent_diffusion.checkpoint.folder.clip_folder import load_clip
from latent_diffusion.checkpoint.folder.clip_towers import load_towers
from latent_diffusion.checkpoint.folder.tokenizer_folder import save_tokenizer
from latent_diffusion.data.bpe import clip_tokenizer, train_byte_pairs
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.training.objectives.clip import Towers
from latent_diffusion.training.run import build_objective
from latent_diffusion.training.run import train as train_here

pytest.importorskip("open_clip")

TEXTS = ["a red disc", "blue circle", "disc, green"]
CAPTIONS = {"captions": ["text", "text_alt"]}


@pytest.fixture(scope="module")
def words():
    return clip_tokenizer(train_byte_pairs([f"a {c} disc circle" for c in ("red", "green", "blue", "black")], 560))


@pytest.fixture(scope="module")
def openclip(words, tmp_path_factory) -> Path:
    """A folder as open-clip pushes it to a hub, with a random model of open-clip's own first kind."""
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("openclip")
    text = {"context_length": 77, "vocab_size": len(words), "width": 32, "heads": 2, "layers": 2}
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
    model_cfg = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(1)
    model = CLIP(**model_cfg)
    pixels = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": pixels}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    save_tokenizer(words, folder, 77)
    return folder


@pytest.fixture(scope="module")
def theirs(words, tmp_path_factory) -> Path:
    """A folder of transformers' `CLIPModel` with random weights."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    folder = tmp_path_factory.mktemp("transformers")
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 16}
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1, pad_token_id=len(words) - 1, **sizes,
    )  # fmt: skip
    vision = CLIPVisionConfig(hidden_size=48, intermediate_size=96, image_size=32, patch_size=8, **sizes)
    torch.manual_seed(2)
    both = {"text_config": text.to_dict(), "vision_config": vision.to_dict()}
    CLIPModel(CLIPConfig(**both, projection_dim=16)).save_pretrained(folder)
    CLIPImageProcessor(size=32, crop_size=32).save_pretrained(folder)
    save_tokenizer(words, folder, 77)
    return folder


def images() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def test_open_clips_model_computes_the_same(openclip):
    from open_clip.model import CLIP
    from safetensors.torch import load_file

    config = json.loads((openclip / "open_clip_config.json").read_text())
    model = CLIP(**config["model_cfg"])
    model.load_state_dict(load_file(openclip / "open_clip_model.safetensors"))
    towers, tokenizer = load_towers(openclip)
    mean, std = (torch.tensor(config["preprocess_cfg"][key]).view(3, 1, 1) for key in ("mean", "std"))
    ids = Towers(towers, tokenizer).ids(TEXTS)
    padded = torch.nn.functional.pad(ids, (0, 77 - ids.shape[1]), value=tokenizer.eos_token_id)
    torch.testing.assert_close(towers.encode_text(ids), model.encode_text(padded), rtol=1e-5, atol=1e-5)
    pixels = ((images() + 1) / 2 - mean) / std
    torch.testing.assert_close(towers.encode_image(images()), model.encode_image(pixels), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(towers.logit_scale, model.logit_scale.exp(), rtol=1e-6, atol=0)


@torch.no_grad()
def features(folder: Path):
    """Return image and text features of transformers' model in `folder`, not normalised, and the token ids."""
    from transformers import CLIPImageProcessor, CLIPModel

    model, ids = CLIPModel.from_pretrained(folder).eval(), Towers(*load_towers(folder)).ids(TEXTS)
    processor = CLIPImageProcessor.from_pretrained(folder)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
    vision = model.visual_projection(model.vision_model(((images() + 1) / 2 - mean) / std).pooler_output)
    return vision, model.text_projection(model.text_model(ids).pooler_output), ids


@torch.no_grad()
def test_transformers_model_computes_the_same(theirs):
    towers, _ = load_towers(theirs)
    vision, text, ids = features(theirs)
    torch.testing.assert_close(towers.encode_image(images()), vision, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(towers.encode_text(ids), text, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["openclip", "theirs"])
def test_training_goes_on_and_transformers_opens_the_result(kind, request, make_run, tmp_path):
    source = request.getfixturevalue(kind)
    run = make_run(
        {"name": "clip", "init": str(source)}, CAPTIONS, steps=30, log_every=1, optimizer={"learning_rate": 2e-3}
    )
    assert train_here(run) == 0
    lines = losses_of(tmp_path / "run")
    assert lines[-1]["clip/loss"] < 0.7 * lines[0]["clip/loss"]
    folder = tmp_path / "run" / "model"
    vision, text, ids = features(folder / "clip")
    towers, _ = load_towers(folder)  # our own folder can be trained on, too
    with torch.no_grad():
        torch.testing.assert_close(towers.encode_image(images()), vision, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(towers.encode_text(ids), text, rtol=1e-5, atol=1e-5)
    clip, unit = load_clip(folder), torch.nn.functional.normalize
    torch.testing.assert_close(clip.image_features(images()), unit(vision, dim=1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(clip.text_features(TEXTS), unit(text, dim=1), rtol=1e-5, atol=1e-5)


def test_killed_and_shared_out_it_is_the_same_run(theirs, pictures, tmp_path):
    run = {
        "output": "unused", "objective": {"name": "clip", "init": str(theirs)}, "steps": 8, "batch_size": 4,
        "data": {"path": str(pictures), "size": 32, **CAPTIONS}, "checkpoint": {"every": 2, "keep": 1},
        "precision": "float64", "log_every": 1, "threads": 1,
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    straight, killed, shared = (tmp_path / name for name in ("straight", "killed", "shared"))
    assert train(straight, str(tmp_path / "run.yaml"), run=real.run) == 0
    assert train(killed, str(tmp_path / "run.yaml"), run=real.run, fault=("within a tensor file", 3)) < 0
    assert train(killed, str(tmp_path / "run.yaml"), run=real.run) == 0
    assert_equal_states(killed, straight)
    assert train_together(shared, str(tmp_path / "run.yaml"), run=real.run) == [0, 0]
    for alone, line in zip(losses_of(straight), losses_of(shared), strict=True):
        assert line["clip/loss"] == pytest.approx(alone["clip/loss"], rel=1e-9)


def test_what_is_no_clip_is_refused(openclip, theirs, tiny_folder, make_run, tmp_path):
    with pytest.raises(CheckpointError, match="no CLIP"):
        load_towers(tiny_folder)
    config = json.loads((openclip / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["timm_model_name"] = "convnext_base"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="vision_cfg has timm_model_name"):
        load_towers(tmp_path)
    with pytest.raises(ConfigError, match="reads 32 px"):
        build_objective(make_run({"name": "clip", "init": str(theirs)}, {**CAPTIONS, "size": 64}))
    for changes, words in (({"embed_dim": 8}, "leave embed_dim out"), ({"init": None}, "give either `text`")):
        with pytest.raises(ConfigError, match=words):
            build_objective(make_run({"name": "clip", "init": str(theirs), **changes}, CAPTIONS))
