"""Every fault is also a test of memory: none takes more than 500 MB beyond what the process had."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

MOST = 500 * 2**20
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(field: str) -> int:
    """Return a field of this process's memory in bytes: VmRSS now, VmHWM at most since it was reset."""
    return int(STATUS.read_text().split(f"{field}:")[1].split()[0]) * 1024


@contextlib.contextmanager
def peak() -> Iterator[Callable[[], int]]:
    """Give a function that returns how many bytes the process has taken at most since the block began."""
    RESET.write_text("5")  # the high-water mark is what is resident now
    before = resident("VmRSS")
    yield lambda: resident("VmHWM") - before


@pytest.fixture
def peak_memory() -> Callable[[], contextlib.AbstractContextManager[Callable[[], int]]]:
    """Return `peak`."""
    if not RESET.exists():
        pytest.skip("needs Linux's /proc to see the peak of memory")
    return peak


@pytest.fixture(autouse=True)
def bounded_memory():
    """Fail a test that took too much."""
    if not RESET.exists():
        yield
        return
    with peak() as taken:
        yield
        assert taken() <= MOST
