"""What is made of the times: ratios, agreement, goals, contention, the file."""

import json
import math
import os

import pytest
import torch

from benchmarks import peaks, quiet
from benchmarks.agreement import agreement
from benchmarks.goals import GOALS, goal_of
from benchmarks.lossy import call_options
from benchmarks.peaks import measure_peaks, peak_of
from benchmarks.plan import Plan
from benchmarks.quiet import Load, Meter, own_cpu_seconds
from benchmarks.race import Lane, ratio
from benchmarks.report import Report, Row, row_of
from benchmarks.worker import Facts
from latent_diffusion.errors import ResourceError

PLAN = Plan("unet-step", "sd1", "float32", "cpu")
QUIET = Load(seconds=20, ours=19.6, busy=19.8, steal=0.0, switches=3)


def row(times=(2.0, 2.0, 2.0), ours=(1.0, 1.0, 1.0), plan=PLAN, tool="diffusers", load=QUIET) -> Row:
    lane = Lane(tool, Facts("float32", {"load": 1.0}, 2.0), seconds=list(times), load=load)
    found = ratio(times, ours)
    known = {"plan": plan, "title": "U-Net step", "size": 512, "gflop": 1600.0, "peak": 1000.0, "peaks": {}}
    return row_of(lane, **known, ratio=found, goal=goal_of(plan, tool))


def test_ratio_of_medians_with_an_interval():
    assert ratio([2.0, 2.0, 2.0], [1.0, 1.0, 1.0]).value == 2
    found = ratio([2.0, 2.4, 1.6, 2.1, 1.9], [1.0, 1.1, 0.9, 1.0, 1.0])
    assert found.low < found.value < found.high and found.value == 2
    assert ratio([2.0, 4.0], [1.0, 2.0]).low == ratio([2.0, 4.0], [1.0, 2.0]).high == 2  # a slow round is everyone's


def test_agreement():
    wanted = torch.tensor([3.0, 4.0])
    found = agreement({"output": wanted + torch.tensor([0.0, 0.5])}, {"output": wanted})
    assert (found.error, found.max_abs, found.psnr) == (0.1, 0.5, None)
    pictures = torch.full((1, 3, 8, 8), 0.5)
    pair = ({"latents": wanted, "images": pictures + 0.1}, {"latents": wanted, "images": pictures})
    assert agreement(*pair).psnr == pytest.approx(20, abs=1e-4)
    assert agreement(pair[0], pair[0]).psnr == math.inf
    losses = torch.tensor([1.0, 0.5, 0.2])
    assert agreement({"losses": losses}, {"losses": losses[:1]}).error == 0  # as far as both ran


def test_a_goal_is_for_its_own_work_only():
    assert goal_of(PLAN, "diffusers").ratio == 1.9
    others = (
        Plan("unet-step", "sd1", "float32", "cpu", size=256),
        Plan("unet-step", "sd1", "float32", "cpu", batch=4),
        Plan("unet-step", "tiny", "float32", "cpu"),
        Plan("unet-step", "sd1", "float32", "cuda"),
        Plan("generate", "sd1", "auto", "cpu", steps=4),
    )
    assert [goal_of(plan, "diffusers") for plan in others] == [None] * len(others)
    assert goal_of(PLAN, "compile") is None
    assert goal_of(Plan("generate", "sd1", "auto", "cpu", steps=20), "diffusers").ratio == 3.5
    assert len({(g.case, g.model, g.device, g.dtype, g.peer) for g in GOALS}) == len(GOALS)


def test_a_missed_goal_fails_on_a_quiet_machine_only():
    assert not row(times=(1.9,) * 3).failed
    assert not row(times=(1.81,) * 3).failed  # within 5 %
    assert "1.79 times as fast as diffusers, committed are 1.9" in row(times=(1.79,) * 3).failed
    busy = Load(seconds=20, ours=10, busy=19, steal=0, switches=0)
    noisy = row(times=(1.5,) * 3, load=busy)
    assert noisy.contended == "other processes took 45% of the processors" and not noisy.failed
    uneven = row(times=(1.5, 1.5, 1.8))
    assert uneven.contended == "slowest call 1.20 times the fastest" and not uneven.failed
    stolen = row(load=Load(seconds=20, ours=10, busy=10, steal=2, switches=0))
    assert stolen.contended == "the host took 10% of the processors"


def test_figures_of_a_row():
    found = row(times=(4.0, 2.0, 3.0, 1.0), ours=(1.0,) * 4)
    assert found.median == 2.5 and found.percent_of_peak == pytest.approx(64)


def test_what_others_took_is_what_was_not_ours():
    meter, before = Meter(), own_cpu_seconds()
    sum(range(5_000_000))
    after = own_cpu_seconds()
    load = meter.stop(after[0] - before[0], after[1] - before[1])
    assert load.seconds > 0 and load.ours > 0
    assert load.others_share == max(0.0, load.busy - load.ours) / load.seconds  # whatever others do meanwhile
    assert Load(seconds=2.0, ours=1.0, busy=1.5).others_share == 0.25
    total = load + load
    assert total.busy == 2 * load.busy and total.others_share == pytest.approx(load.others_share)
    assert Load().others_share == Load().steal_share == 0 and not Load().disturbed


def test_others_are_those_on_our_processors_and_have_at_most_all_of_them(tmp_path, monkeypatch):
    """On one of four processors, with the other three busy; then with a count that moved by more than the time."""
    stat, tick, clock = tmp_path / "stat", os.sysconf("SC_CLK_TCK"), iter([10.0, 12.0, 20.0, 20.001])
    monkeypatch.setattr(quiet, "STAT", stat)
    monkeypatch.setattr(quiet.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2})

    def count(*busy):
        rows = [("cpu", sum(busy)), *((f"cpu{k}", seconds) for k, seconds in enumerate(busy))]
        stat.write_text("".join(f"{name} {round(s * tick)} 0 0 50 0 0 0 0 0 0\n" for name, s in rows) + "intr 1\n")

    count(5, 5, 5, 5)
    meter = Meter()
    count(7, 7, 6.5, 7)
    load = meter.stop(1.0, 0)
    assert (load.seconds, load.busy, load.others_share) == (2.0, 1.5, 0.25)
    meter = Meter()
    count(7, 7, 6.51, 7)
    assert meter.stop(0.0, 0).others_share == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peaks(dtype, monkeypatch):
    monkeypatch.setitem(peaks.SIDE, "cpu", 256)
    monkeypatch.setattr(peaks, "IMAGE", (1, 16, 16))
    found = measure_peaks("cpu", dtype)
    assert set(found) == {"gemm", "conv"} and min(found.values()) > 0
    assert peak_of({"gemm": 1.0, "conv": 2.0}, {"gemm": 1.0, "conv": 4.0}) == 3
    assert peak_of({"gemm": 5.0, "copy": 4000.0}) == 5


def test_the_file_has_every_row_and_is_never_overwritten(tmp_path):
    file = tmp_path / "new" / "found.json"
    report = Report({"processor": "one"}, "2026-11-21", "bench", file)
    report.replace([row(), Row(PLAN, "U-Net step", "openvino", 512, skipped="not installed")])
    report.replace([row(times=(3.0,) * 3)])  # the same work with another round
    report.replace([row(plan=Plan("vae-decode", "sd1", "float32", "cpu"))])
    found = json.loads(file.read_text())
    assert [r["plan"]["case"] for r in found["rows"]] == ["unet-step", "vae-decode"]
    assert found["rows"][0]["seconds"] == [3, 3, 3] and found["rows"][0]["ratio"]["value"] == 3
    assert found["rows"][0]["goal"]["ratio"] == 1.9 and found["machine"] == {"processor": "one"}
    report.replace([Row(PLAN, "U-Net step", "openvino", 512, skipped="not installed")])
    assert json.loads(file.read_text())["rows"][-1]["first"] is None  # JSON has no NaN
    with pytest.raises(ResourceError, match="nothing is overwritten"):
        Report({}, "", "", file)


def test_lossy_names():
    assert call_options("ours") == call_options("diffusers") == {}
    assert call_options("lossy:guidance-interval") == {"guidance_interval": (0.2, 0.8)}
    assert call_options("lossy:deepcache:interval=3") == {"approximate": "deepcache:interval=3"}
