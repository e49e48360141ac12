"""Two processes that each hold half of the weights (FSDP2, gloo) train as one process does."""

import json
import shutil

import pytest
import real
import torch
from processes import losses_of, state_of, train, train_together

from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder
from latent_diffusion.errors import ConfigError
from latent_diffusion.training.fsdp import check_sharding
from latent_diffusion.training.run import build_objective


@pytest.fixture
def config(tiny_objective, pictures, tmp_path):
    """The run of a whole U-Net on four pictures, with held-out losses and sample pictures."""
    run = {
        "output": "unused", "objective": {**tiny_objective("unet"), "validation": {"split": "val"}}, "batch_size": 4,
        "accumulation": 2, "data": {"path": str(pictures), "size": 32, "captions": ["text"]}, "precision": "float32",
        "optimizer": {"learning_rate": 1e-4}, "clip_norm": 0.1, "log_every": 1, "threads": 1, "steps": 8,
        "ema": {"decay": 0.9},
        "decay": "constant", "checkpoint": {"every": 4, "keep": 2},
        "sample": {"prompts": ["a red disc"], "every": 4, "steps": 2},
    }  # fmt: skip
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(run))
    return str(file)


def losses(output):
    figures = [(line["step"], key, value) for line in losses_of(output) for key, value in line.items()]
    return {(step, key): value for step, key, value in figures if "loss" in key or "norm" in key}


def refused(run, objective, processes=2):
    with pytest.raises(ConfigError) as caught:
        check_sharding(objective, run, processes)
    return str(caught.value)


def test_what_does_not_go_with_sharding_is_refused_with_the_reason(tiny_objective, make_run, monkeypatch):
    run = make_run(tiny_objective("unet"))
    objective = build_objective(run)
    check_sharding(objective, run, 1)  # not asked for
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "fsdp_version 1" in refused(run, objective)
    monkeypatch.setenv("FSDP_VERSION", "2")
    check_sharding(objective, run, 2)
    assert "one process" in refused(run, objective, 1)
    whole = make_run(tiny_objective("unet"), optimizer={"name": "muon"})
    assert "optimizer 'muon': it needs whole tensors" in refused(whole, objective)
    with monkeypatch.context() as changed:
        changed.setenv("FSDP_OFFLOAD_PARAMS", "true")
        assert "fsdp_offload_params" in refused(run, objective)
    adapter = make_run({"name": "lora", "init": tiny_objective("unet")["init"]})
    assert "only the U-Net of objective 'unet' is sharded" in refused(adapter, build_objective(adapter))


@pytest.mark.slow
def test_two_sharded_processes_train_as_one_and_go_on_from_its_checkpoints(config, tmp_path):
    """One process makes 8 updates; two make 4, one 4 more in a copy, and two 4 more: losses, weights and moments."""
    one, two, mixed = (tmp_path / name for name in ("one", "two", "mixed"))
    assert train(one, config, run=real.run) == 0
    assert train_together(two, config, "steps=4", run=real.run_sharded) == [0, 0], (tmp_path / "two.err0").read_text()
    shutil.copytree(two, mixed)
    assert train(mixed, config, run=real.run) == 0
    assert train_together(two, config, run=real.run_sharded) == [0, 0], (tmp_path / "two.err0").read_text()
    assert json.loads((two / "config.json").read_text())["processes"] == 2
    for output in (two, mixed):
        assert losses(output) == pytest.approx(losses(one), rel=1e-5), output.name
        wanted, found = state_of(one), state_of(output)
        assert wanted.keys() == found.keys()
        assert [name for name in wanted if not torch.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-4)] == []
        assert (output / "model" / "unet" / "config.json").is_file()
    pictures = [load_folder(output / "model").unet.state_dict() for output in (one, two)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*(p.values() for p in pictures), strict=True))
