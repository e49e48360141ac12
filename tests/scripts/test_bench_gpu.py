"""The benchmark for GPUs runs to its end on a CPU, in tiny, and says that this shows no speed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(target, *options):
    command = [sys.executable, str(ROOT / "scripts" / "bench_gpu.py"), "--cpu", "--json", str(target), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=target.parent)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    target = tmp_path_factory.mktemp("bench") / "gpu.json"
    done = run(target, "--tiny", "--seconds", "900")
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(target.read_text())


def test_every_row_is_there_with_times_or_a_reason(tiny):
    output, found = tiny
    rows = {row["row"]: row for row in found["rows"]}
    skipped = {name: row["skipped"] for name, row in rows.items() if "skipped" in row}
    assert set(skipped.values()) <= {"compiling is timed on GPUs only"}, skipped
    for model, side in (("SD1.5", 64), ("SDXL", 128)):
        for batch in (1, 8):
            row = rows[f"{model} {side} px, 3 steps, batch {batch}"]
            assert min(row["eager_s"], row["ours_s"], row["floor_s"], row["eager/ours"]) > 0
        errors = rows[f"{model} agreement"]
        assert errors["ours_one_step_error"] <= 1.5 * errors["eager_one_step_error"]
    assert rows["SD1.5 first picture, ours"]["first_s"] > 0
    assert rows["decode 64 px"]["ours_error"] < 0.1
    assert f"| {next(iter(rows))} |" in output


def test_it_says_that_this_is_no_gpu(tiny):
    output, found = tiny
    assert found["tiny"] and found["device"].startswith("CPU")
    assert "with tiny shapes: it shows that everything runs, and no speed" in output


def test_after_the_deadline_rows_say_why_they_are_missing(tmp_path):
    done = run(tmp_path / "gpu.json", "--tiny", "--seconds", "0")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert all("0 s are left" in row["skipped"] or "GPUs only" in row["skipped"] for row in rows)


def test_true_sizes_need_a_gpu(tmp_path):
    done = run(tmp_path / "gpu.json")
    assert done.returncode == 1
    assert "no CUDA device here; --tiny" in done.stderr
