"""`python -m benchmarks.guard`: what fails, what is only named, and what is kept."""

import json

import pytest

from benchmarks import guard
from benchmarks.cells import cells
from benchmarks.plan import Plan
from benchmarks.quiet import Load
from benchmarks.race import Lane


def cell(*arguments):
    return guard.main(
        ["unet-step", "--model", "tiny", "--size", "32", "--batch", "1", "--dtype", "float32", *arguments]
    )


def races(monkeypatch, *times, absent=""):
    """Let each race find the next of `times`, (plain, ours), or a load of others."""
    left = list(times)

    def race(plan, tools, rounds):
        assert tools == ("ours", "ours-plain")
        found = left.pop(0)
        load = Load(seconds=10.0, ours=1.0, busy=10.0) if found == "busy" else Load()
        plain, ours = (1.0, 2.0) if found == "busy" else found
        yield [Lane(tools[0], seconds=[ours] * 3, load=load, absent=absent), Lane(tools[1], seconds=[plain] * 3)]

    monkeypatch.setattr(guard, "race", race)
    return left


@pytest.mark.parametrize(
    ("times", "code", "verdict"),
    [
        ([(1.5, 1.0)], 0, "ok"),
        ([(0.981, 1.0)], 0, "ok"),
        ([(0.97, 1.0)], 1, "slower"),
        (["busy", (1.5, 1.0)], 0, "ok"),  # measured again
        (["busy", "busy"], 0, "disturbed"),  # named, not judged
    ],
)
def test_a_cell_fails_where_ours_is_slower_on_a_quiet_machine(monkeypatch, capsys, times, code, verdict):
    left = races(monkeypatch, *times)
    assert cell() == code and not left
    assert verdict in capsys.readouterr().out.splitlines()[-1]


def test_cells_of_an_earlier_run_are_kept(monkeypatch, tmp_path, capsys):
    file = tmp_path / "guard.jsonl"
    races(monkeypatch, (0.9, 1.0))
    assert cell("--json", str(file)) == 1
    first = capsys.readouterr().out
    races(monkeypatch, (1.5, 1.0))
    assert cell("--json", str(file)) == 1  # its verdict too
    assert capsys.readouterr().out == first
    assert cell("--json", str(file), "--batch", "2") == 1
    assert [json.loads(line)[1]["verdict"] for line in file.read_text().splitlines()] == ["slower", "ok"]


def test_a_side_that_cannot_run_is_an_error(monkeypatch, capsys):
    races(monkeypatch, (1.0, 1.0), absent="no such thing")
    assert cell() == 6
    assert "no such thing" in capsys.readouterr().err


def test_a_run_ends_in_time_and_continues(tmp_path):
    """Cells of the least work come first; one that would end too late is left for the next run."""
    plans = [Plan("unet-step", "tiny", "float32", "cpu", size, batch) for size in (512, 256) for batch in (1, 4)]
    file, now = tmp_path / "cells.jsonl", [0.0]

    def measure(plan):
        now[0] += plan.size**2 * plan.batch / 256**2 * 10
        return {"size": plan.size}

    def run(minutes):
        return [found and found["size"] for _, found in cells(plans, file, minutes, measure, lambda: now[0])]

    assert run(1) == [256, 256, None, None] and now[0] == 50
    assert run(2) == [256, 256, 512, None] and now[0] == 90
    assert run(None) == [256, 256, 512, 512] and run(0.1) == [256, 256, 512, 512]
