"""`python -m benchmarks.gpu` on a clock of its own: the order, the budget, limits, and what a second run does."""

import sys
from itertools import pairwise

import pytest

from benchmarks import gpu
from benchmarks.__main__ import CASES, PEERS


class Machine:
    """A clock that moves while a part runs, and the codes with which parts end."""

    def __init__(self, takes=30.0, codes=None):
        self.now, self.takes, self.codes, self.ran, self.limits = 0.0, takes, codes or {}, [], []

    def clock(self):
        return self.now

    def begin(self, command, log, limit):
        self.ran.append(log.stem)
        self.limits.append(limit)
        self.now += min(self.takes, limit)
        if "--json" in command:
            (log.parent / f"{log.stem}.partial").write_text("{}")
        return None if self.takes > limit else self.codes.get(log.stem, 0)


def names():
    return [part.name for part in gpu.PARTS]


def test_the_budget_ends_the_run_and_a_second_run_does_the_rest(tmp_path):
    first = Machine(takes=30.0)
    became = gpu.measure(tmp_path, 100.0, clock=first.clock, begin=first.begin)
    assert first.ran == names()[:3] and first.now <= 100.0
    assert [name for name, end in became.items() if end == "no time left"] == names()[3:]
    second = Machine()
    became = gpu.measure(tmp_path, 1e6, clock=second.clock, begin=second.begin)
    assert second.ran == names()[3:] and list(became) == names()
    assert {"sd1-step.json", "sd1-step.done"} <= {path.name for path in tmp_path.iterdir()}
    assert not list(tmp_path.glob("*.partial"))


def test_no_part_runs_past_its_limit_or_the_budget(tmp_path):
    machine = Machine(takes=1e6)
    became = gpu.measure(tmp_path, 100.0, clock=machine.clock, begin=machine.begin)
    assert machine.now == pytest.approx(100.0, abs=gpu.LEAST)
    assert all(limit <= part.limit for limit, part in zip(machine.limits, gpu.PARTS, strict=False))
    assert "past its limit" in became["correct"] and not list(tmp_path.glob("*.done"))


def test_a_part_that_fails_is_run_again_and_its_rows_are_kept(tmp_path):
    for code in (1, 0):
        machine = Machine(takes=1.0, codes={"train": code})
        became = gpu.measure(tmp_path, 1000.0, clock=machine.clock, begin=machine.begin)
        assert (tmp_path / "train.json").exists()
        assert ("exit code 1" in became["train"]) == bool(code)
    assert machine.ran == ["train"]


def test_a_real_process_is_ended_with_its_children_at_the_limit(tmp_path):
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    assert gpu.start([sys.executable, "-c", code], tmp_path / "log", 0.5) is None
    assert gpu.start([sys.executable, "-c", "print('here'); raise SystemExit(3)"], tmp_path / "log", 30) == 3
    assert (tmp_path / "log").read_text().strip() == "here"


def test_every_part_names_cases_and_peers_that_exist_and_the_budget_is_for_most_of_them(tmp_path):
    for part in gpu.PARTS:
        words = part.command(tmp_path, rehearsal=False)
        if "benchmarks" in words:
            after = words[words.index("benchmarks") + 1 :]
            cases = after[: next(place for place, word in enumerate(after) if word.startswith("--"))]
            assert cases and set(cases) <= set(CASES)
            assert {word for flag, word in pairwise(words) if flag == "--peer"} <= set(PEERS)
    assert sum(part.limit for part in gpu.PARTS[:7]) <= 9 * 60
