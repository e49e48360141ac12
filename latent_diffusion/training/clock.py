"""Where the seconds of training go: waiting for data, gradients (forward, backward, sums over processes), the update.

The rest of the time is the log, checkpoints and sample pictures. On a GPU the update's seconds are those of starting
it: it ends within the next gradients, whose sum is what the host waits for.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

__all__ = ["Clock", "timed"]


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add what the block takes to `seconds[name]`."""
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


class Clock:
    """Adds up seconds by name."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def timed(self, name: str) -> AbstractContextManager[None]:
        """Count the time inside the `with` as `name`."""
        return timed(self._seconds, name)

    def take(self) -> dict[str, float]:
        """Return the seconds of each name since the last call."""
        taken, self._seconds = self._seconds, {}
        return taken
