"""Two processes (really two: gloo on loopback) train as one does, and stop and fail together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy
from processes import (
    assert_equal_states,
    finish,
    free_port,
    last_step,
    losses_of,
    start,
    state_of,
    train,
    train_together,
)

ROOT = Path(__file__).parents[2]


def assert_close_losses(one: Path, two: Path, relative: float) -> None:
    assert json.loads((one / "config.json").read_text())["processes"] == 1
    assert json.loads((two / "config.json").read_text())["processes"] == 2
    first, second = losses_of(one), losses_of(two)
    assert len(first) == len(second) == 30
    for line, expected in zip(second, first, strict=True):
        assert line == pytest.approx(expected, rel=relative, abs=relative)


@pytest.mark.parametrize(("precision", "relative"), [("float64", 1e-9), ("float32", 1e-5)])
def test_two_processes_make_the_losses_of_one(tmp_path, precision, relative):
    one, two = tmp_path / "one", tmp_path / "two"
    options = (f"precision={precision}", "steps=30", "accumulation=2")
    assert train(one, *options) == 0
    assert train_together(two, *options) == [0, 0]
    assert_close_losses(one, two, relative)


def test_one_process_goes_on_from_two_and_back(tmp_path):
    straight, mixed = tmp_path / "straight", tmp_path / "mixed"
    options = ("precision=float64", "decay=constant")
    assert train(straight, *options, "steps=12") == 0
    assert train_together(mixed, *options, "steps=4") == [0, 0]
    assert train(mixed, *options, "steps=8") == 0
    assert train_together(mixed, *options, "steps=12") == [0, 0]
    expected = state_of(straight)
    for name, tensor in state_of(mixed).items():
        assert (tensor - expected[name]).abs().max() <= 1e-9, name


def test_nan_in_one_process_stops_both_before_the_update(tmp_path):
    output = tmp_path / "run"
    assert train_together(output, "objective.nan_gradient_at=4", "objective.nan_rank=1", "checkpoint.every=1") == [5, 5]
    assert all(t.isfinite().all() for t in state_of(output).values())
    assert json.loads((output / "status.json").read_text())["saved"] == 4


def test_a_killed_process_ends_the_other_and_the_rerun_is_equal(tmp_path):
    output, straight = tmp_path / "run", tmp_path / "straight"
    port = free_port()
    ranks = [start(output, "objective.seconds=0.05", rank=r, processes=2, port=port) for r in range(2)]
    while last_step(output) < 5:
        time.sleep(0.01)
    ranks[1].kill()
    began = time.monotonic()
    assert finish(ranks[0]) not in (0, None) and time.monotonic() - began < 60
    assert train_together(output, "objective.seconds=0.05") == [0, 0]
    assert train_together(straight) == [0, 0]
    assert_equal_states(output, straight)


def launch(output: Path, *command: str, overrides: tuple[str, ...] = ()) -> subprocess.Popen:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "TORCHELASTIC", "RANK", "WORLD"))}
    env |= {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    script = [str(Path(toy.__file__)), str(output), *overrides]
    with output.with_suffix(".launch").open("w") as stream:
        return subprocess.Popen([sys.executable, "-m", *command, *script], env=env, stderr=stream, stdout=stream)


LAUNCHERS = {
    "accelerate": ("accelerate.commands.launch", "--num_processes", "1", "--mixed_precision", "no"),
    "torchrun": ("torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1", "--master_port"),
}


def command_of(launcher: str) -> tuple[str, ...]:
    return (*LAUNCHERS[launcher], str(free_port())) if launcher == "torchrun" else LAUNCHERS[launcher]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_sigterm_to_the_launcher_saves_and_leaves_no_orphan(tmp_path, launcher):
    output, straight = tmp_path / "run", tmp_path / "straight"
    process = launch(output, *command_of(launcher), overrides=("objective.seconds=0.2",))
    deadline = time.monotonic() + 200
    while last_step(output) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    child = json.loads((output / "status.json").read_text())["pid"]
    assert child != process.pid
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    while json.loads((output / "status.json").read_text())["state"] == "running" and time.monotonic() < deadline:
        time.sleep(0.02)
    status = json.loads((output / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("interrupted", 143)
    assert status["step"] >= 3 and (output / "checkpoints" / f"step-{status['step']:08d}").exists()
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{child}").exists(), "the training goes on without its launcher"
    processes = 2 if launcher == "torchrun" else 1
    assert json.loads((output / "config.json").read_text())["processes"] == processes
    finished = train_together if processes == 2 else train
    assert finished(output, "objective.seconds=0.2") in (0, [0, 0])
    assert finished(straight) in (0, [0, 0])
    assert_equal_states(output, straight)
