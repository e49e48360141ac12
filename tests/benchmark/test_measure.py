"""A whole measurement with its processes, and the page made of it."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from latent_diffusion.benchmark.bench import measure
from latent_diffusion.benchmark.facts import machine_facts
from latent_diffusion.benchmark.plan import AbsentError, Plan
from latent_diffusion.benchmark.report import Report
from latent_diffusion.benchmark.worker import Worker
from latent_diffusion.errors import ResourceError

ROOT = Path(__file__).parent.parent.parent
PLAN = Plan("vae-decode", "tiny", "float32", "cpu")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    file = tmp_path_factory.mktemp("results") / "one.json"
    report, told = Report(machine_facts("cpu"), "2026-11-21 12:00", "bench vae-decode", file), []
    measure(PLAN, ["diffusers", "no-such-tool"], 2, report, told.append)
    return report, file, told


def test_every_tool_has_its_row(found):
    report, _, told = found
    ours, diffusers, absent = report.rows
    assert [row.tool for row in report.rows] == ["ours", "diffusers", "no-such-tool"]
    assert len(ours.seconds) == len(diffusers.seconds) == 2 and min(ours.seconds) > 0
    assert ours.agreement.error <= 1e-4 and diffusers.agreement.error == 0 and not ours.lossy
    assert ours.ratio is None and diffusers.ratio.value > 0
    assert set(ours.peaks) == {"before", "after"} and ours.percent_of_peak > 0
    assert 0.1 < ours.peak_gib < 8 and 0.1 < diffusers.ready_gib < 8
    assert set(diffusers.ready) == {"import", "load", "prepare"}
    assert absent.skipped == "no tool 'no-such-tool' does this"
    assert told[0] == "counting operations" and "round 2 of 2" in told and told[-1] == "peaks again"


def test_the_page_is_made_of_the_files(found, tmp_path):
    page = tmp_path / "page.md"
    script = runpy.run_path(str(ROOT / "scripts" / "benchmark_docs.py"))
    page.write_text(f"Before.\n{script['BEGIN']}\nold\n{script['END']}\nAfter.\n")
    text = "\n".join(script["lines"]([json.loads(found[1].read_text())]))
    assert "### VAE decode: tiny, 32 px, batch 1, float32" in text
    assert "| ours | float32 | 2 |" in text and "| diffusers | float32 | 2 |" in text
    assert "skipped: " in text and "latent-diffusion bench vae-decode" in text
    assert script["BEGIN"] in script["PAGE"].read_text(), "the page has the marks"


def test_a_tool_that_fails_is_absent():
    with pytest.raises(AbsentError, match=r"failed: .*no-such-model"):
        Worker(replace(PLAN, model="no-such-model"), "diffusers")


def test_without_ours_there_is_nothing_to_measure():
    plan = Plan("train-step", "tiny", "auto", "cpu")
    with pytest.raises(ResourceError, match="ours could not be measured"):
        measure(plan, ["openvino"], 1, Report({}, "", "", None), lambda line: None)
