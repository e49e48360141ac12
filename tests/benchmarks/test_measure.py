"""A whole measurement with its processes, and the page made of it."""

import json
import multiprocessing
import os
from dataclasses import replace
from multiprocessing.connection import Connection
from threading import Thread
from types import SimpleNamespace

import pytest
import torch

from benchmarks import peaks
from benchmarks.facts import machine_facts
from benchmarks.measure import measure
from benchmarks.page import BEGIN, END, PAGE, lines
from benchmarks.plan import AbsentError, Plan
from benchmarks.report import Report
from benchmarks.worker import QUIET, Worker
from latent_diffusion.errors import ResourceError

PLAN = Plan("vae-decode", "tiny", "float32", "cpu")


@pytest.fixture(scope="module")
def in_threads():
    """Tools in threads in place of processes, which each import torch anew; small products for the peaks."""

    def process(target, args, daemon):
        theirs, *rest = args
        return Thread(target=target, args=(Connection(os.dup(theirs.fileno())), *rest), daemon=daemon)

    context = SimpleNamespace(Pipe=multiprocessing.Pipe, Process=process)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        patch.setattr(torch.multiprocessing, "get_context", lambda kind: context)
        patch.setitem(peaks.SIDE, "cpu", 256)
        patch.setattr(peaks, "IMAGE", (1, 16, 16))
        yield


@pytest.fixture(scope="module")
def found(in_threads, tmp_path_factory):
    file = tmp_path_factory.mktemp("results") / "one.json"
    report, told = Report(machine_facts("cpu"), "2026-11-21 12:00", "vae-decode", file), []
    measure(PLAN, ["diffusers"], 2, report, told.append)
    return report, file, told


def test_a_tool_works_in_a_process_of_its_own():
    worker = Worker(PLAN, "ours")
    assert worker.process.pid != os.getpid() and worker.facts.dtype == "float32"
    assert worker.turn().seconds > 0 and worker.result()["output"].isfinite().all()
    assert 0.1 < worker.peak_gib() < 8
    worker.close()
    assert not worker.process.is_alive()


def test_every_tool_has_its_row(found):
    report, _, told = found
    ours, diffusers = report.rows
    assert [row.tool for row in report.rows] == ["ours", "diffusers"]
    assert len(ours.seconds) == len(diffusers.seconds) == 2 and min(ours.seconds) > 0
    assert ours.agreement.error <= 1e-4 and diffusers.agreement.error == 0 and not ours.lossy
    assert ours.ratio is None and diffusers.ratio.value > 0
    assert set(ours.peaks) == {"before", "after"} and ours.percent_of_peak > 0
    assert 0.1 < ours.peak_gib < 8 and 0.1 < diffusers.ready_gib < 8
    assert set(diffusers.ready) == {"import", "load", "prepare"}
    assert told[0] == "counting operations" and "round 2 of 2" in told and told[-1] == "peaks again"


def test_the_page_is_made_of_the_files(found, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"Before.\n{BEGIN}\nold\n{END}\nAfter.\n")
    text = "\n".join(lines([json.loads(found[1].read_text())]))
    assert "### VAE decode: tiny, 32 px, batch 1, float32" in text
    assert "| ours | float32 | 2 |" in text and "| diffusers | float32 | 2 |" in text
    assert "python -m benchmarks vae-decode" in text
    assert BEGIN in PAGE.read_text(), "the page has the marks"


def test_a_tool_that_is_not_there_has_a_row_that_says_so(in_threads, tmp_path):
    report = Report(machine_facts("cpu"), "2026-11-21 12:00", "vae-decode", tmp_path / "one.json")
    measure(PLAN, ["no-such-tool"], 1, report, lambda line: None)
    assert [(row.tool, row.skipped) for row in report.rows][1] == ("no-such-tool", "no tool 'no-such-tool' does this")
    assert "skipped: " in "\n".join(lines([json.loads((tmp_path / "one.json").read_text())]))


def test_a_tool_that_fails_is_absent(in_threads):
    with pytest.raises(AbsentError, match=r"failed: .*no-such-model"):
        Worker(replace(PLAN, model="no-such-model"), "ours")


def test_without_ours_there_is_nothing_to_measure(in_threads):
    plan = Plan("train-step", "tiny", "auto", "cpu")  # auto is refused by all; a lossy way asks for no reference
    with pytest.raises(ResourceError, match="ours could not be measured"):
        measure(plan, ["lossy:guidance-interval"], 1, Report({}, "", "", None), lambda line: None)
