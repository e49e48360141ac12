"""A faster way is taken only where it is right and not clearly slower; it is tried once, and a win is kept."""

import json
import time

import pytest
import torch

from latent_diffusion.runtime.cpu import kept_trials, self_timing
from latent_diffusion.runtime.cpu.self_timing import Trial, wins

X = torch.ones(100)


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    monkeypatch.setattr(self_timing, "_answers", {})
    monkeypatch.setenv("LATENT_DIFFUSION_CACHE", str(tmp_path / "cache"))
    kept_trials._machine.cache_clear()
    yield
    kept_trials._machine.cache_clear()


def slow():
    time.sleep(0.01)
    return X


def fails():
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize(
    ("new", "plain", "answer"),
    [
        (lambda: X, slow, True),
        (slow, lambda: X, False),  # slower
        (lambda: 2 * X, slow, False),  # wrong
        (lambda: X * float("nan"), slow, False),
        (lambda: X[:1], slow, False),  # of another shape
        (fails, slow, False),
    ],
)
def test_the_verdict(new, plain, answer):
    assert wins(Trial("test", torch.float32), lambda dtype: (new, plain)) is answer


def test_it_is_asked_once_for_each_format():
    asked = []
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        wins(Trial("test", dtype), lambda dtype: asked.append(dtype) or (lambda: X, slow))
    assert asked == [torch.float32, torch.bfloat16]


def test_a_busy_moment_does_not_decide():
    left = [0.05] * 8  # the machine is busy during the first calls of the new way

    def new():
        time.sleep(left.pop() if left else 0)
        return X

    assert wins(Trial("test", torch.float32), lambda dtype: (new, lambda: X * 1.0), at_most=50)


@pytest.mark.timeout(20)
def test_a_way_may_be_made_of_a_part_that_is_tried_itself():
    def ways(dtype):
        assert wins(Trial("part", dtype), lambda dtype: (lambda: X, slow))
        return lambda: X, slow

    assert wins(Trial("whole", torch.float32), ways)


def in_the_next_run(monkeypatch, new, plain=slow):
    monkeypatch.setattr(self_timing, "_answers", {})
    kept_trials._machine.cache_clear()
    return wins(Trial("test", torch.float32), lambda dtype: (new, plain))


def test_a_win_is_kept_for_the_next_run_and_a_loss_is_not(monkeypatch, tmp_path):
    assert not in_the_next_run(monkeypatch, slow, lambda: X)
    assert not (tmp_path / "cache").exists()
    assert in_the_next_run(monkeypatch, lambda: X)
    assert in_the_next_run(monkeypatch, fails)  # not tried again
    assert list(json.loads((tmp_path / "cache/trials.json").read_text()).values()) == [["test in float32"]]


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2"),
        lambda patch: patch.setattr(kept_trials, "VERSION", "0"),
        lambda patch: patch.setattr(torch, "__version__", "0"),
        lambda patch: patch.setattr(torch, "get_num_threads", lambda: 77),
        lambda patch: patch.setattr(kept_trials, "_processor", lambda: ["another"]),
    ],
    ids=["instructions", "package", "torch", "threads", "processor"],
)
def test_another_machine_tries_for_itself(monkeypatch, change):
    assert in_the_next_run(monkeypatch, lambda: X)
    with monkeypatch.context() as patch:
        change(patch)
        assert not in_the_next_run(monkeypatch, fails)
    assert in_the_next_run(monkeypatch, fails)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": [1]}', "\0"])
def test_a_damaged_file_is_one_without_trials(monkeypatch, tmp_path, text):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/trials.json").write_text(text)
    assert not in_the_next_run(monkeypatch, fails)
    assert in_the_next_run(monkeypatch, lambda: X) and in_the_next_run(monkeypatch, fails)


def test_nothing_is_kept_where_it_cannot_or_shall_not_be(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", "0"):
        monkeypatch.setenv("LATENT_DIFFUSION_CACHE", str(folder))
        assert in_the_next_run(monkeypatch, lambda: X) and not in_the_next_run(monkeypatch, fails)
