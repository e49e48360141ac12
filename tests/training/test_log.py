"""What people see of a run, and what it costs to run for long."""

import io
import json
import time

import psutil
import pytest
from processes import finish, last_step, start, train
from rich.console import Console

from latent_diffusion.config import RunConfig
from latent_diffusion.runtime.cpu.threads import choose_threads
from latent_diffusion.training.monitoring import log


@pytest.fixture
def run(tmp_path):
    return RunConfig(output=tmp_path, objective={"name": "toy"}, data={}, steps=40, batch_size=8, log_every=10)


def watch(run, folder, monkeypatch, *, terminal):
    screen = io.StringIO()
    monkeypatch.setattr(log, "console", Console(file=screen, force_terminal=terminal, width=120))
    log.start_logging(20)
    kept = log.RunLog(folder, run)
    kept.start(0)
    for done in range(1, 21):
        kept.update(done, {"net/loss": float(done), "net/other": 1.0})
    kept.close()
    return screen.getvalue()


def test_a_terminal_gets_a_bar_with_loss_speed_and_time_left(run, tmp_path, monkeypatch):
    screen = watch(run, tmp_path, monkeypatch, terminal=True)
    assert "20/40" in screen and "net/loss 20" in screen and "images/s" in screen and "left" in screen
    assert "net/other" not in screen


def test_a_file_gets_plain_lines(run, tmp_path, monkeypatch):
    screen = watch(run, tmp_path, monkeypatch, terminal=False)
    assert [line.split()[1] for line in screen.splitlines()] == ["1/40", "10/40", "20/40"]
    assert "net/loss 5.5" in screen  # the mean of updates 1 to 10
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["samples"], line["net/loss"]) for line in lines] == [(10, 80, 5.5), (20, 160, 15.5)]
    assert list((tmp_path / "tensorboard").iterdir())


def test_lines_after_the_checkpoint_and_cut_lines_are_dropped(run, tmp_path, monkeypatch):
    watch(run, tmp_path, monkeypatch, terminal=False)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 30, "net/lo')
    kept = log.RunLog(tmp_path, run)
    kept.start(10)
    kept.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [10]


def test_held_out_figures_have_lines_of_their_own(tmp_path):
    output = tmp_path / "run"
    assert train(output, "objective.held_out=true", "sample.every=6") == 0
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "held_out" in line] == [6, 12]


def test_threads_are_the_cores_shared_out():
    cores = choose_threads(1)
    assert cores >= 1 and choose_threads(2) == max(1, cores // 2) and choose_threads(10**6) == 1
    assert choose_threads(2, wanted=7) == 7


@pytest.mark.slow
def test_long_runs_keep_memory_files_and_threads(tmp_path):
    output = tmp_path / "run"
    options = ("steps=3000", "checkpoint.every=250", "log_every=50", "sample.every=250", "decay=constant")
    process = start(output, *options)
    watched = psutil.Process(process.pid)
    seen = {}
    for target in (1000, 2000, 2900):
        while last_step(output) < target and process.is_alive():
            time.sleep(0.02)
        seen[target] = (watched.memory_info().rss, watched.num_fds(), watched.num_threads())
    assert finish(process) == 0
    assert seen[2900][0] - seen[2000][0] < 2**22, seen
    assert seen[2900][1] <= seen[1000][1] + 2 and seen[2900][2] == seen[1000][2], seen  # a file may be open just then
    assert len(list((output / "checkpoints").iterdir())) == 2
