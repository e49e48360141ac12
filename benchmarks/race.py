"""All tools in turn: A B C A B C ..., so that whatever the machine does meanwhile, it does to all of them."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from benchmarks.plan import AbsentError, Plan
from benchmarks.quiet import SPREAD, Load, Meter
from benchmarks.worker import Facts, Worker

__all__ = ["Lane", "Ratio", "race", "ratio"]

QUICK = 3.0  # seconds of a call that is made once more before it counts
ROUNDS = ((0.3, 15), (QUICK, 5), (float("inf"), 3))  # timed calls, by the seconds of the slowest tool's first call
RESAMPLED = 2000  # times, for the interval of a ratio


@dataclass
class Lane:
    """One tool's part in a race."""

    tool: str
    facts: Facts | None = None
    absent: str = ""  # why there is nothing
    first: float = 0.0  # seconds of the first call (compiling, capturing), or of its short form
    seconds: list[float] = field(default_factory=list)  # of each call after it
    load: Load = field(default_factory=Load)
    peak_gib: float = 0.0  # of the calls
    made: dict[str, Tensor] = field(default_factory=dict)
    split: dict[str, float] = field(default_factory=dict)  # seconds of all calls by what they were for

    @property
    def median(self) -> float:
        """Median seconds of a call."""
        return statistics.median(self.seconds)

    @property
    def contended(self) -> str:
        """What makes the times doubtful, or ""."""
        spread = max(self.seconds) / min(self.seconds)
        return self.load.disturbed or (f"slowest call {spread:.2f} times the fastest" if spread > SPREAD else "")


@dataclass(frozen=True)
class Ratio:
    """How many times faster one is than another, with a 95 % interval."""

    value: float
    low: float
    high: float


def race(
    plan: Plan, tools: Sequence[str], rounds: int | None, tell: Callable[[str], None] = lambda _: None
) -> Iterator[list[Lane]]:
    """Make the tools ready one after the other, then let them work in turn.

    Args:
        plan: the work.
        tools: names, ours first.
        rounds: timed calls of each; None = by how long they take.
        tell: gets a line on what goes on.

    Yields:
        The lanes when all are ready and have been called once, then after every round; at the last with results.
    """
    lanes, workers = [Lane(tool) for tool in tools], dict[str, Worker]()
    try:
        for lane in lanes:
            tell(f"{lane.tool}: getting ready")
            try:
                workers[lane.tool] = Worker(plan, lane.tool)
                lane.facts = workers[lane.tool].facts
                lane.first = workers[lane.tool].warm_up().seconds
            except AbsentError as absent:
                lane.absent = str(absent)
        running = [lane for lane in lanes if not lane.absent]
        yield lanes
        slowest = max((lane.first for lane in running), default=0.0)
        if slowest < QUICK:  # memory and caches settle over two calls
            for lane in running:
                workers[lane.tool].turn()
        rounds = rounds or _rounds(slowest)
        for done in range(rounds):
            tell(f"round {done + 1} of {rounds}")
            for lane in running:
                meter, turn = Meter(), workers[lane.tool].turn()
                lane.seconds.append(turn.seconds)
                lane.load += meter.stop(turn.cpu_seconds, turn.switches)
            if done < rounds - 1:
                yield lanes
        for lane in running:
            worker = workers[lane.tool]
            lane.made, lane.peak_gib, lane.split = worker.result(), worker.peak_gib(), worker.split()
        yield lanes
    finally:
        for worker in workers.values():
            worker.close()


def _rounds(slowest: float) -> int:
    return next(count for limit, count in ROUNDS if slowest <= limit)


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> Ratio:
    """Return their median time over ours, the interval from drawing whole rounds anew (bootstrap).

    Reference: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3 (percentile interval).
    """
    pairs = np.array([theirs, ours])
    rows = np.random.default_rng(0).integers(0, pairs.shape[1], (RESAMPLED, pairs.shape[1]))
    medians = np.median(pairs[:, rows], axis=2)
    low, high = np.percentile(medians[0] / medians[1], [2.5, 97.5])
    value = np.median(pairs[0]) / np.median(pairs[1])
    return Ratio(float(value), float(low), float(high))
