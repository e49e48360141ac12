import json
import shutil

import pytest
import torch

from latent_diffusion.checkpoint.files.safetensors_file import read_tensors
from latent_diffusion.checkpoint.folder.clip_folder import from_towers, load_clip, open_clip, save_clip
from latent_diffusion.data.bpe import clip_tokenizer, train_byte_pairs
from latent_diffusion.errors import CheckpointError

pytest.importorskip("open_clip")
TEXTS = ["a red apple", "", "a blue bird " * 12, "Bird 😀"]


def make_towers(*, quick_gelu: bool = False):
    from latent_diffusion.models.clip import CLIPConfig, TowerConfig, TwoTowers

    pairs = train_byte_pairs(["a red apple", "blue bird"], 540)
    torch.manual_seed(0)
    config = CLIPConfig(
        TowerConfig(32, 2, 2, 2), TowerConfig(48, 2, 3, 3), len(pairs.vocabulary), 16, 32, 8, quick_gelu=quick_gelu
    )
    towers = TwoTowers(config)
    for parameter in towers.parameters():  # far from the small initial values, so that the activation shows
        if parameter.ndim:
            torch.nn.init.normal_(parameter, std=0.3)
    return towers.eval(), clip_tokenizer(pairs)


@pytest.mark.parametrize("quick_gelu", [False, True])
@torch.no_grad()
def test_export_computes_what_was_trained(quick_gelu):
    towers, tokenizer = make_towers(quick_gelu=quick_gelu)
    clip = from_towers(towers, tokenizer)
    assert clip.text_encoder.config.hidden_act == ("quick_gelu" if quick_gelu else "gelu")
    ids, images = clip.text_encoder.tokenize(TEXTS), torch.randn(4, 3, 32, 32)
    tower = towers.model.text
    tower.output_tokens = True
    features, states = tower(ids)  # open-clip's own forward, all 77 tokens
    output = clip.text_encoder.model(input_ids=ids)
    ends = ids.argmax(dim=1)
    assert (output.last_hidden_state - states).abs().max() <= 1e-5 * states.abs().max()
    assert (output.pooler_output - states[torch.arange(4), ends]).abs().max() <= 1e-5 * states.abs().max()
    tower.output_tokens = False
    assert torch.allclose(towers.encode_text(ids), features, rtol=1e-5, atol=1e-4)
    image, text = towers(images, ids)
    assert (clip.image_features(images) - image).abs().max() <= 1e-5
    assert (clip.text_features(TEXTS) - text).abs().max() <= 1e-5
    assert float(clip.logit_scale) == pytest.approx(1 / 0.07)


@torch.no_grad()
def test_round_trip_and_size(tmp_path):
    clip = from_towers(*make_towers())
    save_clip(clip, tmp_path, dtype=None)
    again, images = load_clip(tmp_path), torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(again.image_features(images), clip.image_features(images))
    assert torch.equal(again.text_features(TEXTS), clip.text_features(TEXTS))
    save_clip(clip, tmp_path)
    tensors = read_tensors(tmp_path / "clip" / "model.safetensors")
    assert {v.dtype for k, v in tensors.items() if k != "logit_scale"} == {torch.float16}
    assert not any("text_model" in name for name in tensors)  # these are in text_encoder/, once
    half = load_clip(tmp_path).image_features(images)
    assert (half - clip.image_features(images)).abs().max() < 1e-2
    assert again.image_features(torch.rand(1, 3, 100, 60)).shape == (1, 16)


@torch.no_grad()
def test_with_the_text_encoder_it_is_transformers_clip_model(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    clip = from_towers(*make_towers())
    save_clip(clip, tmp_path, dtype=None)
    text = read_tensors(tmp_path / "text_encoder" / "model.safetensors")
    model = CLIPModel(CLIPConfig(**json.loads((tmp_path / "clip" / "config.json").read_text()))).eval()
    model.load_state_dict(text | read_tensors(tmp_path / "clip" / "model.safetensors"))
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    logits = model(input_ids=clip.text_encoder.tokenize(TEXTS), pixel_values=images).logits_per_image
    ours = clip.logit_scale * clip.image_features(images) @ clip.text_features(TEXTS).T
    assert (logits - ours).abs().max() < 1e-4


def test_damage_is_named(tmp_path):
    save_clip(from_towers(*make_towers()), tmp_path)
    config = tmp_path / "clip" / "config.json"
    values = json.loads(config.read_text())
    values["vision_config"]["num_hidden_layers"] = 3
    config.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="missing"):
        load_clip(tmp_path)
    config.write_text("{}")
    with pytest.raises(CheckpointError, match="vision_config"):
        load_clip(tmp_path)
    shutil.rmtree(tmp_path / "clip")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_clip(tmp_path)


@torch.no_grad()
def test_a_model_folder_and_a_clip_folder_open_as_the_same_clip(tmp_path):
    clip, images = from_towers(*make_towers()), torch.rand(2, 3, 32, 32) * 2 - 1
    save_clip(clip, tmp_path, dtype=None, whole=True)
    for folder in (tmp_path, tmp_path / "clip"):
        again = open_clip(folder)
        assert torch.allclose(again.image_features(images), clip.image_features(images), atol=1e-6)
        assert torch.allclose(again.text_features(TEXTS), clip.text_features(TEXTS), atol=1e-6)
    with pytest.raises(CheckpointError, match="no CLIP"):
        open_clip(tmp_path / "tokenizer")
