"""Work done ahead of its turn by threads, its results in order.

Pillow decodes outside the interpreter lock, so threads suffice: no worker processes, no shared memory to fill, and a
fault keeps its own error.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["ahead"]

A = TypeVar("A")
B = TypeVar("B")


def ahead(make: Callable[[A], B], items: Iterable[A], workers: int, most: int) -> Iterator[B]:
    """Yield `make(item)` for every item, in order.

    Args:
        make: called by threads, several at a time.
        items: may be endless, is read `most` items ahead.
        workers: threads; 0 makes each result when it is asked for.
        most: results that are being made or wait.
    """
    if workers == 0:
        yield from map(make, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="data")
    waiting: deque[Future[B]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        pool.shutdown()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
