"""Lines of the log while data are prepared for the first update, which can take longer than a person waits in doubt."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

__all__ = ["with_progress"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

FIRST, INTERVAL = 10.0, 60.0
"""Seconds to the first line, and between two later ones."""


def with_progress(groups: Iterable[T], total: int, size: Callable[[T], int], what: str) -> Iterator[T]:
    """Yield the groups, and log now and then how many of `total` items are done and the time left for the others."""
    start, done = time.monotonic(), 0
    due = start + FIRST
    for group in groups:
        yield group
        done += size(group)
        now = time.monotonic()
        if now >= due and done < total:
            due = now + INTERVAL
            left = timedelta(seconds=round((now - start) / done * (total - done)))
            logger.info("%s: %s of %s, %s left", what, f"{done:,}", f"{total:,}", left)
