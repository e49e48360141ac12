"""`python -m benchmarks`."""

import pytest

from benchmarks import measure as benchmark
from benchmarks.__main__ import main
from benchmarks.goals import Goal
from benchmarks.plan import Plan
from benchmarks.race import Lane, Ratio
from benchmarks.report import Row, row_of
from benchmarks.worker import Facts


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["unet-stop"], "unknown case 'unet-stop' (did you mean 'unet-step'?)"),
        (["--peer", "diffuser"], "unknown peer 'diffuser' (did you mean 'diffusers'?)"),
        (["--dtype", "float64"], "unknown dtype 'float64'"),
        (["vae-decode", "--lossy", "tome"], "--lossy is for the cases generate and unet-step"),
        (["--device", "abacus"], "unknown device 'abacus'"),
    ],
)
def test_what_cannot_be_is_refused(arguments, said, capsys):
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments,code,said",
    [
        (["generate", "--lossy", "deepcash"], 2, "unknown approximation 'deepcash'"),
        (["generate", "--lossy", "deepcache:interval=0"], 2, "interval"),
        (["generate", "--lossy", "deepcache:branch=99"], 2, "branch 99; this U-Net has"),
        (["unet-step", "--size", "100"], 2, "--size 100 is not a multiple of 8"),
        (["unet-step", "--size", "100000"], 2, "--size 100000"),
        (["unet-step", "--model", "nowhere"], 4, "no model 'nowhere'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(arguments, code, said, tmp_path, capsys):
    file = tmp_path / "new" / "found.json"
    assert main(["--model", "tiny", *arguments, "--device", "cpu", "--json", str(file)]) == code
    assert said in capsys.readouterr().err
    assert not file.parent.exists()


def test_a_file_that_is_there_is_kept(tmp_path, capsys):
    file = tmp_path / "found.json"
    file.write_text("mine")
    assert main(["--json", str(file)]) == 6
    assert "nothing is overwritten" in capsys.readouterr().err and file.read_text() == "mine"


def measured(ratio: float):
    """Return a stand-in for the measurement that finds `ratio`."""

    def measure(plan: Plan, others, rounds, report, tell):
        known = {"plan": plan, "title": "U-Net step", "size": 512, "gflop": 1600.64, "peak": 515.0, "peaks": {}}
        rows = []
        for tool in ("ours", "diffusers-best", "lossy:guidance-interval"):
            lane = Lane(tool, Facts("bfloat16", {"load": 12.345, "prepare": 8.1}, 2.0), first=70.65)
            lane.seconds, lane.peak_gib = [7.1, 7.22, 7.44], 11.73
            goal = Goal("unet-step", "sd1", "cpu", "float32", tool, 1.9) if tool == "diffusers-best" else None
            found = Ratio(ratio, ratio - 0.03, ratio + 0.03) if tool != "ours" else None
            rows.append(row_of(lane, **known, ratio=found, goal=goal))
        rows.append(Row(plan, "U-Net step", "openvino", 512, skipped="openvino is not installed", gflop=1600.64))
        report.replace(rows)
        return rows

    return measure


@pytest.mark.parametrize("ratio,code", [(1.95, 0), (1.82, 0), (1.7, 1)])
def test_exit_code(ratio, code, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "measure", measured(ratio))
    assert main(["unet-step", "--dtype", "float32", "--device", "cpu"]) == code
    told = capsys.readouterr()
    assert ("check failed: unet-step sd1 float32: 1.70 times as fast as diffusers-best" in told.err) == bool(code)
    lines = told.out.splitlines()
    assert max(map(len, (line.rstrip() for line in lines))) <= 100
    assert sum(line.startswith("diffusers-best bf16") for line in lines) == 1
    assert any(f"{ratio:.2f} ({ratio - 0.03:.2f}-{ratio + 0.03:.2f})" in line for line in lines)
    assert any("skipped: openvino is not installed" in line for line in lines)
    assert any(line.startswith("Lossy ways") for line in lines)
