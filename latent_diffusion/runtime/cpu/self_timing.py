"""Whether a faster way works on this machine: tried once, for some milliseconds, never guessed by name.

A way wins when it gives the plain way's numbers and is not clearly slower. "Clearly" keeps the answer the same from
run to run on a busy machine: another answer would be another rounding of the same picture. For the same reason a win is
kept for later runs, see `kept_trials`.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latent_diffusion.runtime.agreement import TOLERANCE, error
from latent_diffusion.runtime.cpu.kept_trials import keep, kept

__all__ = ["Trial", "Ways", "wins"]

ROUNDS = 5  # of both ways, in turn; the fastest of each counts
TRIES = 6  # until the new way wins: it loses only when it loses them all, so a busy moment does not decide
SLOWER = 1.25  # times as long as the plain way is clearly slower

_answers: dict["Trial", bool] = {}
_lock = threading.RLock()  # a way may be made of parts that are tried themselves

Ways = tuple[Callable[[], Tensor], Callable[[], Tensor]]
"""The new way and the plain one, each a call on inputs of its own."""


@dataclass(frozen=True)
class Trial:
    """The subject of a trial: a name and a number format."""

    what: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.what} {self.dtype}".replace("torch.", "in ")


def wins(trial: Trial, ways: Callable[[torch.dtype], Ways], at_most: float = SLOWER, off: float | None = None) -> bool:
    """Return whether the first of `ways(dtype)`, (new, plain), is right and takes `at_most` times the second's time.

    Right is a relative error up to `off`; None = the rounding of the number format.
    """
    with _lock:
        if trial not in _answers:
            allowed = TOLERANCE[trial.dtype] if off is None else off
            _answers[trial] = str(trial) in kept() or _try_out(trial, ways, at_most, allowed)
        return _answers[trial]


@torch.no_grad()
def _try_out(trial: Trial, ways: Callable[[torch.dtype], Ways], at_most: float, off: float) -> bool:
    try:
        new, plain = ways(trial.dtype)
        found, wanted = new(), plain()
    except (RuntimeError, NotImplementedError, AttributeError):  # torch without the private operation, or another form
        return False
    won = error(found, wanted) <= off and any(_faster(new, plain, at_most) for _ in range(TRIES))
    if won:
        keep(str(trial))
    return won


def _faster(new: Callable[[], Tensor], plain: Callable[[], Tensor], at_most: float) -> bool:
    times = [(_seconds(new), _seconds(plain)) for _ in range(ROUNDS)]
    return min(t for t, _ in times) <= at_most * min(t for _, t in times)


def _seconds(way: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start
