"""A run that was killed anywhere, started again, ends bit for bit as one that was not."""

import json
import random
import shutil
import signal
import time

import processes
import pytest
from processes import KILLED_WITHIN_A_SAVE, assert_equal_states, finish, last_step, losses_of, start, train


def said(output):
    """Return what the last process of a run printed."""
    return output.with_name(f"{output.name}.err0").read_text()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of 12 steps that nothing disturbed, a checkpoint every 3."""
    output = tmp_path_factory.mktemp("straight") / "run"
    assert train(output) == 0
    return output


@pytest.mark.parametrize("point", KILLED_WITHIN_A_SAVE)
def test_killed_within_a_save(straight, tmp_path, point):
    output = tmp_path / "run"
    after = random.Random(point).randint(2, 6)
    if "file" not in point:
        after = 1 if point == "within pruning" else 2  # passed once a save
    assert train(output, fault=(point, after)) == -signal.SIGKILL
    assert train(output) == 0
    assert_equal_states(output, straight)
    assert losses_of(output) == losses_of(straight)
    assert sorted(p.name for p in (output / "checkpoints").iterdir()) == ["step-00000009", "step-00000012"]
    assert not list(output.glob(".tmp-*"))


def test_disk_full_ends_with_6_and_keeps_what_was_saved(straight, tmp_path):
    output = tmp_path / "run"
    assert train(output, fault=("disk full", 12)) == 6
    status = json.loads((output / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 6)
    assert "No space left" in status["message"] and "free" in status["message"]
    assert sorted(p.name for p in (output / "checkpoints").iterdir()) == ["step-00000003", "step-00000006"]
    assert train(output) == 0
    assert_equal_states(output, straight)


def test_killed_at_random_times(straight, tmp_path):
    _sweep(straight, tmp_path / "run", kills=4)


@pytest.mark.slow
def test_killed_at_random_times_many(straight, tmp_path):
    for number in range(6):
        _sweep(straight, tmp_path / f"run{number}", kills=6)


def _sweep(straight, output, kills):
    chance = random.Random(str(output.name))
    slow = "objective.seconds=0.02"
    for target in sorted(chance.sample(range(1, 12), kills)):
        process = start(output, slow)
        while last_step(output) < target and process.is_alive():
            time.sleep(0.003)
        time.sleep(chance.uniform(0, 0.06))
        process.kill()
        assert finish(process) in (-signal.SIGKILL, 0)
    assert train(output, slow) == 0
    assert_equal_states(output, straight)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_the_step_it_came_in(straight, tmp_path, stop):
    output = tmp_path / "run"
    process = start(output, "objective.seconds=0.1")
    while last_step(output) < 4:
        time.sleep(0.01)
    process_id = process.pid
    assert process_id is not None
    processes.os.kill(process_id, stop)
    assert finish(process) == 128 + stop
    status = json.loads((output / "status.json").read_text())
    assert status["state"] == "interrupted" and status["exit_code"] == 128 + stop
    newest = max((output / "checkpoints").iterdir()).name
    assert newest == f"step-{status['step']:08d}" and 4 <= status["step"] < 12
    assert train(output, "objective.seconds=0.1") == 0
    assert_equal_states(output, straight)
    assert losses_of(output) == losses_of(straight)


def test_a_finished_run_is_left_alone(straight, tmp_path):
    output = tmp_path / "copy"  # moved, and all clocks set back
    shutil.copytree(straight, output)
    for path in output.rglob("*"):
        processes.os.utime(path, (0, 0))
    before = {p: (p.stat().st_mtime, p.read_bytes()) for p in output.rglob("*") if p.is_file()}
    assert train(output) == 0
    assert {p: (p.stat().st_mtime, p.read_bytes()) for p in output.rglob("*") if p.is_file()} == before


def test_a_run_killed_before_its_first_save_starts_afresh(straight, tmp_path):
    output = tmp_path / "run"
    assert train(output, fault=("before anything is written", 0)) == -signal.SIGKILL
    assert train(output) == 0
    assert_equal_states(output, straight)
    assert losses_of(output) == losses_of(straight)  # no line of the updates that were lost


def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path):
    output, straight = tmp_path / "run", tmp_path / "straight"
    assert train(output, "decay=constant", "steps=7") == 0
    assert train(output, "decay=constant") == 0
    assert train(straight, "decay=constant") == 0
    assert_equal_states(output, straight)
    assert json.loads((output / "model" / "training.json").read_text())["step"] == 12
    for model in (True, False):  # fewer steps than were made, with the model written and without
        if not model:
            shutil.rmtree(output / "model")
        assert train(output, "decay=constant", "steps=7") == 0
        assert "steps: 7, but the run has made 12 updates; its model is that of step 12" in said(output)
    assert json.loads((output / "model" / "training.json").read_text())["step"] == 12


def test_another_configuration_is_refused_with_its_differences(straight, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(straight, output)
    assert train(output, "seed=3", "optimizer.learning_rate=0.5") == 2
    message = said(output)
    assert "seed: 0 -> 3" in message and "optimizer.learning_rate: 0.01 -> 0.5" in message
    assert "allow_drift=true" in message and "Traceback" not in message
    assert train(output, "checkpoint.every=5", "log_every=3", "checkpoint.keep=1") == 0
    assert train(output, "data.count=11") == 2
