"""N09: what each sampler makes with a tiny seeded model has not changed, to 1e-4.

A new sampler needs `python scripts/make_golden.py` once; a changed number needs a reason.
"""

import json
import math
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
GOLDEN = json.loads((ROOT / "tests" / "golden" / "samplers.json").read_text())
TOLERANCE = 1e-4
SAME_METHOD = ("euler", "euler_ancestral")  # as ddim and ddpm; only the times told to the network may differ


def compare(got, wanted):
    """Finite first: a NaN compares as neither near nor far."""
    assert all(math.isfinite(value) for value in (*got, *wanted)), "not finite"
    assert len(got) == len(wanted)
    worst = max(abs(a - b) for a, b in zip(got, wanted, strict=True))
    assert worst <= TOLERANCE, worst


@pytest.fixture(scope="module")
def slices():
    return runpy.run_path(str(ROOT / "scripts" / "make_golden.py"))["golden_slices"]()


@pytest.mark.parametrize("key", sorted(GOLDEN))
def test_n09_golden_slice(slices, key):
    compare(slices[key], GOLDEN[key])


def test_no_golden_slice_is_left_over(slices):
    """A new sampler gets its slices with the next `scripts/make_golden.py`; none may go."""
    assert set(GOLDEN) <= set(slices)


def test_golden_slices_differ():
    """A sampler or spacing that changed nothing would prove nothing."""
    told_apart = {key: values for key, values in GOLDEN.items() if key.split("/")[0] not in SAME_METHOD}
    assert len({tuple(values) for values in told_apart.values()}) == len(told_apart)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_the_comparer_refuses_what_is_not_finite(broken):
    with pytest.raises(AssertionError, match="not finite"):
        compare([broken], [broken])
    with pytest.raises(AssertionError, match="not finite"):
        compare([broken], [1.0])
