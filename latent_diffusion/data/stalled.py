"""A read that gives nothing, as of a network disk whose server is gone, ends the run instead of holding it for ever."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from latent_diffusion.errors import DataError

__all__ = ["StalledRead", "read_within"]

T = TypeVar("T")


class StalledRead(DataError):
    """A picture's file gave nothing for too long; no other picture of the same disk is tried after it."""


def read_within(seconds: float, name: str, read: Callable[[], T]) -> T:
    """Return `read()`, called by a thread of its own that is left behind if it does not return.

    No call can end a system call that is stuck; the thread is a daemon, so that the process can end without it.

    Args:
        seconds: the longest wait.
        name: what the error calls the file.
        read: reads a whole file; its errors come through.

    Raises:
        StalledRead: `read` did not return in time.
    """
    result: Future[T] = Future()

    def fetch() -> None:
        try:
            result.set_result(read())
        except BaseException as error:  # raised where the result is waited for
            result.set_exception(error)

    threading.Thread(target=fetch, name=f"read {name}", daemon=True).start()
    try:
        return result.result(seconds)
    except TimeoutError:
        if result.done():  # the read's own error
            raise
        raise StalledRead(
            f"{name!r}: nothing was read for {seconds:g} s; check its disk, or set data.read_timeout to wait longer"
        ) from None
