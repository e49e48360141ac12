"""Which kernels a run trains with is part of the run: it is chosen once and kept when the run continues."""

import json
import logging
from dataclasses import asdict

import pytest
import torch

from latent_diffusion.runtime.cpu.native import training_attention
from latent_diffusion.runtime.cpu.training_kernels import PLAIN, TrainingKernels
from latent_diffusion.training import run as run_module
from latent_diffusion.training.run import train
from latent_diffusion.training.state.training_state import newest_state

BUILT = training_attention.available()
FAST = TrainingKernels(native_attention=BUILT, native_gelu=BUILT, convolved_linear=True)


@pytest.fixture
def chosen(monkeypatch):
    """Set what is found right."""

    def choose(kernels):
        monkeypatch.setattr(run_module, "choose_kernels", lambda precision, device: kernels)

    return choose


def end_of(run):
    state = newest_state(run.output / "checkpoints")
    assert state is not None
    return state.tensors("unet"), state.values["kernels"]


def run_of(make_run, folder, output, **values):
    ema = {"decay": 0.9}
    return make_run({"name": "unet", "init": str(folder)}, output=str(output), ema=ema, batch_size=2, **values)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_that_continues_keeps_its_kernels_and_its_bits(tiny_folder, make_run, tmp_path, chosen, precision):
    chosen(FAST)
    straight = run_of(make_run, tiny_folder, tmp_path / "straight", steps=4, precision=precision)
    assert train(straight) == 0
    halves = tmp_path / "halves"
    assert train(run_of(make_run, tiny_folder, halves, steps=2, precision=precision)) == 0
    chosen(PLAIN)  # as a later version might
    resumed = run_of(make_run, tiny_folder, halves, steps=4, precision=precision)
    assert train(resumed) == 0
    (wanted, kernels), (found, kept) = end_of(straight), end_of(resumed)
    assert kernels == kept == asdict(FAST)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_fast_false_trains_with_plain_kernels(tiny_folder, make_run, tmp_path, chosen):
    chosen(FAST)
    run = run_of(make_run, tiny_folder, tmp_path / "plain", steps=1, fast=False)
    assert train(run) == 0
    assert end_of(run)[1] == asdict(PLAIN)


def test_kernels_that_are_gone_are_said(tiny_folder, make_run, tmp_path, chosen, monkeypatch, caplog):
    chosen(TrainingKernels(native_attention=True))
    assert train(run_of(make_run, tiny_folder, tmp_path / "moved", steps=1)) == 0
    chosen(PLAIN)
    monkeypatch.setattr(training_attention, "available", lambda: False)
    with caplog.at_level(logging.WARNING):
        monkeypatch.setattr(logging.getLogger("latent_diffusion"), "propagate", True)
        monkeypatch.setattr("latent_diffusion.training.run.start_logging", lambda level: None)
        run = run_of(make_run, tiny_folder, tmp_path / "moved", steps=2)
        assert train(run) == 0
    assert "round differently" in caplog.text
    assert end_of(run)[1]["native_attention"] is False


def test_the_log_says_where_the_time_goes(tiny_folder, make_run, tmp_path):
    run = run_of(make_run, tiny_folder, tmp_path / "timed", steps=2, log_every=1)
    assert train(run) == 0
    lines = [json.loads(line) for line in (run.output / "log.jsonl").read_text().splitlines()]
    for line in lines:
        shares = [line[f"time/{part}"] for part in ("data", "gradients", "update")]
        assert all(0 <= share <= 1 for share in shares) and 0 < sum(shares) <= 1.001
