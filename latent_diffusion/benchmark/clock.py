"""Seconds by name."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["clocked"]


@contextmanager
def clocked(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add what the block takes to `seconds[name]`."""
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
