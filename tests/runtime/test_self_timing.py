"""A faster way is taken only where it is right and not clearly slower; the question is asked once."""

import time

import pytest
import torch

from latent_diffusion.runtime.cpu import self_timing
from latent_diffusion.runtime.cpu.self_timing import Trial, wins

X = torch.ones(100)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(self_timing, "_answers", {})


def slow():
    time.sleep(0.01)
    return X


def fails():
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize(
    ("new", "plain", "answer"),
    [
        (lambda: X, slow, True),
        (slow, lambda: X, False),  # slower
        (lambda: 2 * X, slow, False),  # wrong
        (lambda: X * float("nan"), slow, False),
        (lambda: X[:1], slow, False),  # of another shape
        (fails, slow, False),
    ],
)
def test_the_verdict(new, plain, answer):
    assert wins(Trial("test", torch.float32), lambda dtype: (new, plain)) is answer


def test_it_is_asked_once_for_each_format():
    asked = []
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        wins(Trial("test", dtype), lambda dtype: asked.append(dtype) or (lambda: X, slow))
    assert asked == [torch.float32, torch.bfloat16]


def test_a_busy_moment_does_not_decide():
    left = [0.05] * 8  # the machine is busy during the first calls of the new way

    def new():
        time.sleep(left.pop() if left else 0)
        return X

    assert wins(Trial("test", torch.float32), lambda dtype: (new, lambda: X * 1.0), at_most=50)
