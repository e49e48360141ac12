"""What of a whole model is trained, with which learning rate, and until when."""

import json
from itertools import pairwise

import pytest
import real
import torch
from processes import assert_equal_states, losses_of, state_of, train, train_together

from latent_diffusion.checkpoint.files.safetensors_file import read_tensors
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder
from latent_diffusion.errors import ConfigError
from latent_diffusion.training.run import build_objective
from latent_diffusion.training.run import train as train_here

CAPTIONED = {"captions": ["text", "text_alt"], "caption_dropout": 0.25}
BOTH = {"parts": ["unet", "text_encoder"], "rules": [{"match": "^text_encoder", "learning_rate": 1e-5, "until": 0.5}]}


def moved(one, other) -> set[str]:
    return {name for name, tensor in one.items() if not torch.equal(tensor, other[name])}


def parts_in(folder):
    """Return every weight of a model folder by part and name."""
    model = load_folder(folder)
    parts = {"unet": model.unet, "vae": model.autoencoder}
    parts |= {f"text_encoder.{k}": tower.model for k, tower in enumerate(model.text_encoder.towers)}
    return {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}


def test_cross_attention_only(tiny_folder, make_run, tmp_path):
    run = make_run(
        {"name": "unet", "init": str(tiny_folder), "train": {"layers": "cross_attention"}}, CAPTIONED, steps=6
    )
    assert train_here(run) == 0
    changed = moved(parts_in(tmp_path / "run" / "model"), parts_in(tiny_folder))
    assert changed and all(name.startswith("unet.") and ".attn2." in name for name in changed)
    assert any(name.endswith("attn2.to_k.weight") for name in changed)


def test_both_text_encoders_of_sdxl_alone(tiny_family, make_run, tmp_path):
    settings = {"parts": ["text_encoder", "text_encoder_2"]}
    run = make_run({"name": "unet", "init": str(tiny_family("sdxl")), "train": settings}, CAPTIONED, steps=6)
    assert train_here(run) == 0
    changed = moved(parts_in(tmp_path / "run" / "model"), parts_in(tiny_family("sdxl")))
    assert {name.rpartition(".")[0].split(".")[1] for name in changed} == {"0", "1"}
    assert not any(name.startswith(("unet", "vae")) for name in changed)
    left = {name for name in parts_in(tiny_family("sdxl")) if name.startswith("text_encoder.")} - changed
    # the U-Net reads the first tower before its last layer; all of the second reaches it
    assert left and all(name.startswith(("text_encoder.0.encoder.layers.2.", "text_encoder.0.final_")) for name in left)


def test_a_text_encoder_has_its_own_learning_rate_and_end(tiny_folder, make_run, tmp_path):
    run = make_run(
        {"name": "unet", "init": str(tiny_folder), "train": BOTH},
        CAPTIONED,
        steps=12,
        decay="constant",
        checkpoint={"every": 1, "keep": 12},
        optimizer={"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.0},
    )
    assert train_here(run) == 0
    steps = [read_tensors(tmp_path / f"run/checkpoints/step-{k:08d}/unet.safetensors") for k in range(1, 13)]
    sizes = {name: changes(steps, name) for name in ("text_encoder.final_layer_norm.bias", "unet.conv_out.bias")}
    text = sizes["text_encoder.final_layer_norm.bias"]
    assert all(0 < size < 2e-5 for size in text[:5]) and text[5:] == [0.0] * 6
    assert all(size > 1e-4 for size in sizes["unet.conv_out.bias"])


def changes(steps, name) -> list[float]:
    """Return the largest change of a tensor from each step to the next."""
    return [float((after[name] - before[name]).abs().max()) for before, after in pairwise(steps)]


@pytest.fixture
def config(tiny_family, pictures, tmp_path):
    """Return a function that writes a run of SDXL in which both text encoders end half-way."""

    def write(**changes) -> str:
        train = {**BOTH, "parts": ["unet", "text_encoder", "text_encoder_2"]}
        run = {
            "output": "unused", "objective": {"name": "unet", "init": str(tiny_family("sdxl")), "train": train},
            "data": {"path": str(pictures), "size": 32, **CAPTIONED}, "steps": 8, "batch_size": 4, "threads": 1,
            "ema": {"decay": 0.9}, "checkpoint": {"every": 1, "keep": 9}, "log_every": 1, **changes,
        }  # fmt: skip
        file = tmp_path / "run.yaml"
        file.write_text(json.dumps(run))
        return str(file)

    return write


def test_killed_before_and_after_the_end_of_the_text_encoders(config, tmp_path):
    file = config()
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert train(straight, file, run=real.run) == 0
    for more, last in ((3, 3), (2, 5)):
        assert train(killed, file, run=real.run, fault=("before the rename", more)) < 0
        assert max((killed / "checkpoints").glob("step-*")).name == f"step-{last:08d}"
    assert train(killed, file, run=real.run) == 0
    assert_equal_states(killed, straight)
    assert losses_of(killed) == losses_of(straight)


def test_two_processes_freeze_them_at_the_same_update(config, tmp_path):
    file = config(precision="float64")
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(one, file, run=real.run) == 0
    assert train_together(two, file, run=real.run) == [0, 0]
    alone, shared = state_of(one), state_of(two)
    assert alone.keys() == shared.keys()
    far = [key for key in alone if not torch.allclose(alone[key], shared[key], rtol=1e-6, atol=1e-9)]
    assert far == []
    for expected, line in zip(losses_of(one), losses_of(two), strict=True):
        assert line["unet/loss"] == pytest.approx(expected["unet/loss"], rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"parts": ["text_encoder_2"]}, "has no text_encoder_2; it has unet, text_encoder"),
        ({"parts": ["unet", "unet"]}, "names one twice"),
        ({"layers": ["attn9"]}, "no weight of unet is chosen"),
        ({"layers": ["attn1", "attn9"]}, "layers: 'attn9' matches no weight, such as unet"),
        ({"rules": [{"match": "text_encoder", "until": 0.5}]}, "rules: 'text_encoder' matches no weight"),
        ({"rules": [{"match": "", "until": 0.5}]}, "freeze every weight"),
        ({"rules": [{"match": "(", "until": 0.5}]}, "not a regular expression"),
        ({"rules": [{"match": "attn", "until": 1.0}]}, "less than 1"),
        ({"rules": [{"match": "attn", "learning_rate": 0.0}]}, "greater than 0"),
    ],
)
def test_choices_that_cannot_be_are_refused(tiny_folder, make_run, settings, words):
    with pytest.raises(ConfigError, match=words):
        build_objective(make_run({"name": "unet", "init": str(tiny_folder), "train": settings}, CAPTIONED))
