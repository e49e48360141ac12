"""Ways to train in less memory: what they change, what they must not change, and what they refuse."""

import json
import sys
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from processes import assert_equal_states, losses_of

from latent_diffusion.checkpoint.files import safetensors_file
from latent_diffusion.checkpoint.files.mapping import _pieces
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder, save_folder
from latent_diffusion.errors import ConfigError
from latent_diffusion.nn.stored import FORMATS, StoredLayer
from latent_diffusion.training.networks import weights_digest
from latent_diffusion.training.run import build_objective, train
from latent_diffusion.training.state.launch import build_accelerator
from latent_diffusion.training.trainer import Trainer

CAPTIONED = {"captions": ["text"], "caption_dropout": 0.3}
SAMPLES = {"prompts": ["a red disc"], "every": 2, "steps": 2}
OBJECTIVES = {
    "unet": {"name": "unet", "validation": {"split": "val"}},
    "lora": {"name": "lora", "adapter": {"rank": 2, "layers": "all"}, "preserve": {"replace": {"red": "blue"}}},
    "words": {"name": "textual_inversion", "words": [{"token": "disc", "start": "sun", "vectors": 3}]},
    "concepts": {"name": "concepts", "adapter": {"rank": 2}, "concepts": [{"prompt": "a red disc"}], "draw_steps": 2},
}


def run_of(make_run, folder, kind, output, **values):
    data = {} if kind == "concepts" else CAPTIONED
    run = make_run({**OBJECTIVES[kind], "init": str(folder)}, data, output=str(output), **values)
    return run.model_copy(update={"data": {"size": 32}}) if kind == "concepts" else run


def trained(run):
    objective: Any = build_objective(run)
    trainer = Trainer(objective, run, build_accelerator())
    trainer.fit()
    return objective


def weights_of(objective):
    return [tensor for player in objective.players.values() for tensor in player.state_dict().values()]


@pytest.mark.parametrize("kind", ["unet", "lora", "concepts"])
def test_dropped_encoders_change_neither_weights_nor_pictures(tiny_folder, make_run, tmp_path, kind):
    kept, dropped = tmp_path / "kept" / "run", tmp_path / "dropped" / "run"
    for output, memory in ((kept, None), (dropped, {"drop_encoders": True})):
        run = run_of(make_run, tiny_folder, kind, output, steps=2, sample=SAMPLES, memory=memory, log_every=1)
        assert train(run) == 0
    assert_equal_states(kept, dropped)
    assert losses_of(kept) == losses_of(dropped)
    pictures = [sorted((output / "samples").glob("step*.png")) for output in (kept, dropped)]
    assert pictures[0] and [one.read_bytes() for one in pictures[0]] == [one.read_bytes() for one in pictures[1]]
    files = [sorted(file.name for file in (output / "model").rglob("*.safetensors")) for output in (kept, dropped)]
    assert files[0] and files[0] == files[1]
    assert json.loads((dropped / "status.json").read_text())["state"] == "finished"


def test_dropped_encoders_leave_no_weight_in_memory(tiny_folder, make_run, tmp_path):
    made = trained(run_of(make_run, tiny_folder, "lora", tmp_path / "run", memory={"drop_encoders": True}))
    for model in (made.base, made.components):
        for part in (model.autoencoder, model.text_encoder):
            assert {weight.device.type for weight in part.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("objective", "data", "reason"),
    [
        ({"name": "lora", "adapter": {"parts": ["text_encoder"]}}, {}, "while a text encoder or a word is trained"),
        ({"name": "unet", "inpainting": {}}, {}, "around each drawn mask"),
        ({"name": "unet", "latent_cache_bytes": 0}, {}, "latents are not cached"),
        ({"name": "unet"}, {"fit": "random_crop"}, "latents are not cached"),
        ({"name": "unet", "text_cache_bytes": 0}, {}, "text states are not cached"),
    ],
)
def test_encoders_that_updates_need_are_not_dropped(tiny_folder, make_run, objective, data, reason):
    run = make_run({**objective, "init": str(tiny_folder)}, CAPTIONED | data, memory={"drop_encoders": True})
    with pytest.raises(ConfigError, match=f"memory.drop_encoders: .*{reason}"):
        Trainer(build_objective(run), run, build_accelerator())


def test_objectives_refuse_what_has_no_meaning_for_them(tiny_objective, make_run):
    run = make_run(tiny_objective("autoencoder"), memory={"drop_encoders": True})
    with pytest.raises(ConfigError, match=r"memory\.drop_encoders: not for objective 'autoencoder'"):
        build_objective(run)


def test_losses_on_a_stored_base_differ_by_its_rounding_and_the_files_fit_the_exact_one(
    tiny_folder, make_run, tmp_path
):
    """The files are read back: their changes are those of the layers."""
    bounds = {None: 0.0, "bfloat16": 1e-3, "float8": 1e-2, "int8": 2e-3, "nf4": 3e-2}
    losses = {}
    for form in bounds:
        output = tmp_path / str(form)
        run = run_of(make_run, tiny_folder, "lora", output, memory={"base": form}, log_every=1)
        assert train(run) == 0 and (output / "model" / f"{form}.safetensors").is_file()
        losses[form] = [line["unet/loss"] for line in losses_of(output) if "unet/loss" in line]
    for form, bound in bounds.items():
        assert losses[form] == pytest.approx(losses[None], rel=bound), form
        assert form is None or losses[form] != losses[None]


@pytest.mark.parametrize("kind", ["lora", "concepts", "words"])
def test_frozen_layers_hold_no_whole_weight(tiny_folder, make_run, tmp_path, kind):
    made = trained(run_of(make_run, tiny_folder, kind, tmp_path / "run", memory={"base": "int8"}))
    for model in (made.base, made.components):
        layers = [layer for layer in model.unet.modules() if isinstance(layer, StoredLayer)]
        large = [name for name, weight in model.unet.named_parameters() if weight.ndim > 1 and weight.numel() > 1000]
        assert len(layers) > 50 and {layer.stored["bits"].dtype for layer in layers} == {torch.int8}
        assert [name for name in large if not name.startswith(("conv_in", "conv_out")) and "change" not in name] == []


@pytest.mark.parametrize("adapter", [{"dora": True}, {"form": "lokr"}, {"parts": ["unet", "text_encoder"]}])
def test_every_form_of_change_lies_on_a_stored_base(tiny_folder, make_run, adapter):
    objective = {"name": "lora", "init": str(tiny_folder), "adapter": {"rank": 2, **adapter}}
    run = make_run(objective, CAPTIONED, memory={"base": "int8"}, optimizer={"learning_rate": 1e-2})
    assert train(run) == 0


def test_layers_on_the_host_give_the_bits_of_layers_on_the_device(tiny_folder, make_run, tmp_path):
    """On a CPU both are one memory; the layers still compute from what they fetch."""
    results = []
    for memory in (None, {"base_on_host": True}):
        run = run_of(make_run, tiny_folder, "lora", tmp_path / "run", memory=memory, fast=False)
        results.append(weights_of(trained(run)))
    assert all(torch.equal(plain, fetched) for plain, fetched in zip(*results, strict=True))


def test_a_bfloat16_base_on_the_host_gives_the_bits_of_autocast(tiny_folder, make_run, tmp_path):
    results = []
    for memory in (None, {"base_on_host": True}):
        run = run_of(make_run, tiny_folder, "lora", tmp_path / "run", memory=memory, precision="bfloat16")
        results.append(weights_of(trained(run)))
    assert all(torch.equal(plain, fetched) for plain, fetched in zip(*results, strict=True))


def test_a_stored_base_is_only_under_what_leaves_it_as_it_is(tiny_folder, make_run, tmp_path):
    run = run_of(make_run, tiny_folder, "unet", tmp_path, memory={"base": "int8"})
    with pytest.raises(ConfigError, match=r"memory\.base: not for objective 'unet'; it obeys drop_encoders"):
        build_objective(run)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="files are mapped on Linux")
def test_of_a_base_in_fewer_bits_the_file_is_in_memory_one_weight_at_a_time(
    tiny_folder, make_run, tmp_path, monkeypatch
):
    """Neither reading, nor its digest, nor packing it holds the U-Net's file: encoding has the memory to itself."""
    save_folder(load_folder(tiny_folder), tmp_path / "half", torch.float16)
    monkeypatch.setattr(safetensors_file, "LARGE", 1)
    paged, alive, plain = [], [], FORMATS["int8"]
    monkeypatch.setattr(weights_digest, "page_out", paged.append)
    monkeypatch.setitem(FORMATS, "int8", replace(plain, pack=lambda w: alive.append(len(_pieces)) or plain.pack(w)))
    objective: Any = build_objective(run_of(make_run, tmp_path / "half", "lora", tmp_path, memory={"base": "int8"}))
    unet = [weight.data_ptr() for weight in objective.base.unet.state_dict().values()]
    assert set(unet) <= set(_pieces)
    objective.fingerprint()
    assert set(unet) <= set(paged)
    objective.prepare(build_accelerator(), torch.float32)
    assert len(alive) > 50 and all(earlier - later in (0, 1, 2) for earlier, later in pairwise(alive))
    assert alive[0] - alive[-1] >= len(alive) - 2
    assert not set(unet) & set(_pieces)


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_a_half_precision_file_trains_as_a_float32_file_of_its_numbers(tiny_folder, make_run, tmp_path, form):
    """Its weights are read as they are, and the changes, norms and layers that are not stored are float32."""
    half, whole = tmp_path / "half", tmp_path / "whole"
    save_folder(load_folder(tiny_folder), half, torch.float16)
    save_folder(load_folder(half), whole)
    results = []
    for folder in (half, whole):
        made = trained(run_of(make_run, folder, "lora", tmp_path / "run", memory={"base": form}))
        assert {weight.dtype for weight in made.components.unet.parameters()} == {torch.float32}
        results.append(weights_of(made))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
