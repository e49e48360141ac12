"""What may befall a run: each fault ends as promised, and what was saved before stays as it was."""

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from processes import assert_equal_states, finish, free_port, losses_of, start, state_of, train, train_together

from latent_diffusion.config import RunConfig, read_config
from latent_diffusion.errors import ConfigError, ResourceError
from latent_diffusion.training.monitoring.spikes import SpikeWatch
from latent_diffusion.training.state.run_folder import RunFolder

CONSTANT = "decay=constant"


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run at a constant learning rate; treat it as read-only."""
    output = tmp_path_factory.mktemp("straight") / "run"
    assert train(output, CONSTANT) == 0
    return output


def digests(output: Path) -> dict[str, str]:
    files = sorted((output / "checkpoints").rglob("*.*"))
    return {str(f.relative_to(output)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}


def status(output: Path) -> dict:
    return json.loads((output / "status.json").read_text())


def test_a_second_signal_ends_the_run_at_once_and_keeps_what_was_saved(tmp_path):
    output = tmp_path / "run"
    assert train(output, CONSTANT, "steps=3") == 0
    before = digests(output)
    process = start(output, CONSTANT, fault=("a long update, and no echo of signals", 0))
    while status(output)["state"] != "running" and process.is_alive():
        time.sleep(0.02)
    time.sleep(0.5)  # the update has begun
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.3)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process, 20) == 143
    assert digests(output) == before and status(output)["state"] == "interrupted"


def test_stopped_after_every_step_and_continued_equals_uninterrupted(straight, tmp_path):
    output = tmp_path / "run"
    for steps in range(1, 13):
        assert train(output, CONSTANT, f"steps={steps}") == 0
    assert_equal_states(output, straight)


def test_a_broken_folder_of_a_step_does_not_stop_two_processes(tmp_path):
    output, whole = tmp_path / "run", tmp_path / "whole"
    assert train_together(output, CONSTANT, "steps=6") == [0, 0]
    broken = output / "checkpoints" / "step-00000009"
    broken.mkdir()
    (broken / "state.json").write_text("{")
    assert train_together(output, CONSTANT) == [0, 0]
    assert train_together(whole, CONSTANT) == [0, 0]
    assert (output / "checkpoints" / "damaged-step-00000009").is_dir()
    assert_equal_states(output, whole)


def test_a_loss_that_jumps_and_stays_is_named_with_its_samples(tmp_path, monkeypatch):
    watch = SpikeWatch()
    run = RunConfig(output=tmp_path, objective={"name": "toy"}, data={}, steps=40, batch_size=8)
    lines = []
    monkeypatch.setattr(
        "latent_diffusion.training.monitoring.spikes.logger.warning", lambda text, *found: lines.append(text % found)
    )
    losses = [1.0, 1.2] * 8 + [50.0, 50.0] + [1.0] + [20.0] * 5
    for done, loss in enumerate(losses, start=1):
        watch.after_update(type("Trainer", (), {"done": done, "run": run})(), {"net/loss": loss, "net/other": loss})
    assert len(lines) == 1 and "net/loss" in lines[0] and "updates 20 to 22, samples 152 .. 175" in lines[0]


@pytest.mark.parametrize("place", ["forward", "backward", "update", "save"])
def test_out_of_memory_ends_with_6_and_advice(straight, tmp_path, place):
    output = tmp_path / "run"
    assert train(output, CONSTANT, "steps=3") == 0
    before = digests(output)
    assert train(output, CONSTANT, fault=(f"out of memory in {place}", 0)) == 6
    told = status(output)
    assert told["exit_code"] == 6
    if place != "save":
        assert "out of memory; raise accumulation" in told["message"]
    assert digests(output) == before
    assert train(output, CONSTANT) == 0
    assert_equal_states(output, straight)


def test_a_process_killed_within_a_save_ends_the_other(tmp_path):
    output, whole = tmp_path / "run", tmp_path / "whole"
    port = free_port()
    fault = ("within a tensor file", 7)
    first = start(output, CONSTANT, rank=0, processes=2, port=port, fault=fault)
    second = start(output, CONSTANT, rank=1, processes=2, port=port)
    assert finish(first, 60) == -signal.SIGKILL and finish(second, 60) not in (0, None)
    assert train_together(output, CONSTANT) == [0, 0]
    assert train_together(whole, CONSTANT) == [0, 0]
    assert_equal_states(output, whole)


def test_a_process_that_fails_alone_ends_the_other_which_says_so(tmp_path):
    output, port = tmp_path / "run", free_port()
    first = start(output, CONSTANT, rank=0, processes=2, port=port)
    second = start(output, CONSTANT, rank=1, processes=2, port=port, fault=("one process fails", 4))
    assert finish(second, 60) == 70 and finish(first, 60) == 6
    assert "another process of this run ended" in status(output)["message"]
    assert all(tensor.isfinite().all() for tensor in state_of(output).values())


def test_held_out_pictures_do_not_change_the_curve(straight, tmp_path):
    output = tmp_path / "run"
    assert train(output, CONSTANT, "objective.held_out=true", "sample.every=2") == 0
    with_figures = losses_of(output)
    assert [line for line in with_figures if "held_out" in line]
    assert [line for line in with_figures if "held_out" not in line] == losses_of(straight)
    assert_equal_states(output, straight)


def test_a_full_disk_under_the_log_is_said_once_and_the_training_goes_on(straight, tmp_path):
    output = tmp_path / "run"
    assert train(output, CONSTANT, fault=("log disk full", 0)) == 0
    assert Path(f"{output}.err0").read_text().count("the log can no longer be written") == 1
    assert_equal_states(output, straight)


def test_an_unfinished_run_may_be_moved_and_its_clock_set_back(straight, tmp_path):
    output, moved = tmp_path / "run", tmp_path / "elsewhere" / "run"
    assert train(output, CONSTANT, "steps=3") == 0
    assert train(output, CONSTANT, "steps=6") == 0
    moved.parent.mkdir()
    shutil.move(output, moved)
    os.utime(moved / "checkpoints" / "step-00000006", (0, 0))  # the newest by number is the oldest by its time
    assert train(moved, CONSTANT) == 0
    assert "continuing after step 6" in Path(f"{moved}.err0").read_text()
    assert_equal_states(moved, straight)


def test_a_kill_with_the_average_in_place_mixes_nothing(straight, tmp_path):
    output, sample = tmp_path / "run", "sample.every=2"
    assert train(output, CONSTANT, sample, fault=("killed in a preview", 2)) == -signal.SIGKILL
    assert train(output, CONSTANT, sample) == 0
    assert_equal_states(output, straight)


def test_one_thread_or_two_differ_in_rounding_only(straight, tmp_path):
    output = tmp_path / "run"
    assert train(output, CONSTANT, "threads=2") == 0
    found, expected = state_of(output), state_of(straight)
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) <= 1e-5


def test_numbers_beyond_all_measure_are_refused(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("output: a\nobjective: {name: toy}\ndata: {}\nsteps: " + "9" * 5000 + "\nbatch_size: 1\n")
    with pytest.raises(ConfigError, match="`steps`") as caught:
        read_config(file)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("output", ["file", "file/below", "/proc/run"])
def test_an_output_that_cannot_be_a_folder_is_refused_before_training(tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("kept")
    with pytest.raises(ResourceError, match=r"cannot be written.*choose another"), RunFolder(Path(output)).locked():
        pass
    assert Path("file").read_text() == "kept"
