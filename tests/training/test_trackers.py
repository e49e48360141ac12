"""Curves and pictures in Weights & Biases, through accelerate's tracker; the library itself is stood in for."""

import importlib.machinery
import json
import sys
import types

import pytest
from PIL import Image

from latent_diffusion.config import RunConfig
from latent_diffusion.errors import ConfigError
from latent_diffusion.training.monitoring.log import RunLog
from latent_diffusion.training.monitoring.trackers import open_trackers
from latent_diffusion.training.state.launch import build_accelerator


@pytest.fixture
def run(tmp_path):
    return RunConfig(
        output=tmp_path, objective={"name": "toy"}, data={}, steps=4, batch_size=8, trackers=["wandb", "wandb"]
    )


@pytest.mark.parametrize("fault", [RuntimeError("out of reach"), ConnectionError("out of reach")], ids=repr)
@pytest.mark.parametrize("at", ["init", "log", "finish"])
def test_t17_a_tracker_out_of_reach_is_named_once_and_the_log_goes_on(run, tmp_path, monkeypatch, caplog, fault, at):
    def fails(*arguments, **options):
        raise fault

    logged = types.SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)
    wandb = types.ModuleType("wandb")
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    wandb.init = lambda **options: logged
    wandb.config = types.SimpleNamespace(update=lambda *_, **__: None)
    setattr(wandb if at == "init" else logged, at, fails)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    build_accelerator()
    kept = RunLog(tmp_path, run.model_copy(update={"log_every": 1}))
    kept.start(0)
    for done in (1, 2, 3):
        kept.update(done, {"net/loss": 0.5})
    kept.close()
    assert caplog.text.count("out of reach") == 1
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_figures_and_pictures_reach_the_tracker_and_a_continued_run_is_the_same(run, tmp_path, monkeypatch):
    calls: list[tuple] = []
    wandb = types.ModuleType("wandb")
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    logged = types.SimpleNamespace(
        log=lambda values, step, **_: calls.append(("log", values, step)), finish=lambda: calls.append(("finish",))
    )
    wandb.init = lambda **options: calls.append(("init", options)) or logged
    wandb.config = types.SimpleNamespace(update=lambda values, **_: calls.append(("config", values)))
    wandb.Image = lambda image: ("picture", image.size)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    build_accelerator()
    for done in (0, 2):
        (tracker,) = open_trackers(tmp_path, run, done)
        tracker.figures(done + 1, {"unet/loss": 0.5})
        tracker.pictures(done + 2, [Image.new("RGB", (8, 6))])
        tracker.close()
        tracker.close()
    kinds = [call[0] for call in calls]
    assert kinds == ["init", "config", "log", "log", "finish"] * 2
    first, second = (call[1] for call in calls if call[0] == "init")
    assert first == second and first["resume"] == "allow" and first["dir"] == str(tmp_path)
    assert calls[2] == ("log", {"unet/loss": 0.5}, 1) and calls[3] == ("log", {"samples": [("picture", (8, 6))]}, 2)


def test_a_tracker_that_is_not_installed_is_refused_if_it_was_asked_for(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="trackers: wandb is not installed: pip install wandb"):
        open_trackers(tmp_path, run, 0)
