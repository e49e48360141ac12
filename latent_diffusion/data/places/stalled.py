"""A read that gives nothing, as of a network disk whose server is gone, ends the run instead of holding it for ever.

Every read of the files of a data set is a call of `read_within`. No call can end a system call that is stuck: the read
is made by a thread of its own, which is left behind. `watched` makes one such thread for many reads; only while one of
them lasts does its clock run, not while what was read is worked on.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from latent_diffusion.errors import DataError

__all__ = ["READ_TIMEOUT", "StalledRead", "read_each_within", "read_within", "watched"]

T = TypeVar("T")

READ_TIMEOUT = 600.0
"""Longest wait for one file, in s, where no setting gives another."""

_here = threading.local()  # `watch`: that of the reads which this thread makes


class StalledRead(DataError):
    """A file gave nothing for too long; no other file of the same disk is tried after it."""


class _Watch:
    """What a thread reads now, and since when."""

    def __init__(self) -> None:
        self.now: tuple[str, float] | None = None  # name, start on the monotonic clock

    def during(self, name: str, read: Callable[[], T]) -> T:
        before = self.now
        self.now = name, time.monotonic()
        try:
            return read()
        finally:
            self.now = before


def read_within(seconds: float, name: str, read: Callable[[], T]) -> T:
    """Return `read()`, which reads a file; within `watched`, whose limit then counts, no thread is started.

    Args:
        seconds: the longest wait.
        name: what the error calls the file.
        read: its errors come through.

    Raises:
        StalledRead: `read` did not return in time.
    """
    watch: _Watch | None = getattr(_here, "watch", None)
    if watch is not None:
        return watch.during(name, read)
    return watched(seconds, lambda: read_within(seconds, name, read))


def read_each_within(seconds: float, name: str, items: Iterator[T]) -> Iterator[T]:
    """Yield the items of an iterator that reads a file or folder for each of them, each as `read_within` does."""
    end = object()
    while (item := read_within(seconds, name, lambda: next(items, end))) is not end:
        yield item  # pyright: ignore[reportReturnType] -- it is not `end`


def watched(seconds: float, work: Callable[[], T]) -> T:
    """Return `work()`, called by a daemon thread, without which the process can end; none is started within another.

    Args:
        seconds: the longest wait for each of its reads, which are calls of `read_within`.
        work: its errors come through.

    Raises:
        StalledRead: one of its reads did not return in time.
    """
    if getattr(_here, "watch", None) is not None:
        return work()
    watch, result = _Watch(), Future[T]()

    def call() -> None:
        _here.watch = watch
        try:
            result.set_result(work())
        except BaseException as error:  # raised where the result is waited for
            result.set_exception(error)

    threading.Thread(target=call, name="read", daemon=True).start()
    while True:
        now = watch.now
        left = seconds if now is None else now[1] + seconds - time.monotonic()
        try:
            return result.result(max(left, 0))
        except TimeoutError:
            if result.done():  # the error of the read itself, or it came at the last moment
                return result.result()
            if now is not None and watch.now is now and left <= 0:
                raise StalledRead(
                    f"{now[0]!r}: nothing was read for {seconds:g} s; check its disk; "
                    "in a run data.read_timeout is the longest wait"
                ) from None
