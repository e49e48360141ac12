"""A test run: how many processes it takes, and at its end why tests were skipped, with counts.

Tests compare with other libraries. On some days the newest releases of two of them refuse each other, and no code here
can change that: such a test is skipped with the library's own message. A refusal that this package meets is a failure.
"""

import gc
import os
import re
from collections import Counter
from pathlib import Path

import psutil
import pytest

PACKAGE = Path(__file__).with_name("latent_diffusion")
REFERENCES = {"diffusers", "open_clip", "peft", "skimage", "torchvision", "transformers"}
gc.disable()  # until the tests begin: a third of the time of collecting them was the search for garbage among modules
MEMORY_OF_A_WORKER = 3 * 1024**3
VERSION = re.compile(r"\bversion\b|[<>=]=\s*\d", re.IGNORECASE)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Return a worker for each core and 3 GiB of free memory; 0 for named files and GPUs: this process alone."""
    if all(".py" in name for name in config.args) or config.option.markexpr == "gpu":
        return 0
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # the plugin reads it
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, psutil.virtual_memory().available // MEMORY_OF_A_WORKER))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop():
    """Look for garbage again, but not among the modules and tests that stay until the end."""
    gc.freeze()
    gc.enable()


def refusal(error: BaseException, files: list[Path]) -> str | None:
    """Return why a reference refused to work with another library, or None if `error` is anything else.

    Args:
        error: what a test raised.
        files: the source files of its traceback, the outermost first.
    """
    raised_by_a_reference = any(part in REFERENCES for part in files[-1].parts)
    ours = any(PACKAGE in file.parents for file in files)
    if not isinstance(error, ImportError | ValueError) or ours or not raised_by_a_reference:
        return None
    return f"a reference refuses: {error}".splitlines()[0] if VERSION.search(str(error)) else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Report a test whose reference refuses another library as skipped."""
    report = yield
    if report.failed and call.excinfo is not None:
        files = [Path(entry.path) for entry in call.excinfo.traceback]
        reason = refusal(call.excinfo.value, files)
        if reason is not None:
            path, line, _ = item.location
            report.outcome, report.longrepr = "skipped", (path, (line or 0) + 1, f"Skipped: {reason}")
    return report


def pytest_terminal_summary(terminalreporter):
    """Print every reason for skipping with its number of tests."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    if reasons:
        terminalreporter.section(f"{len(skipped)} skipped, and why")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:5}  {reason}")
