"""The warnings of one drawing, collected for its answer.

`warnings.catch_warnings` replaces hooks of the whole process and is not safe where several threads warn. Here one hook
serves all threads: it appends to the list of the thread that warns, and prints where that thread collects nothing.
"""

import contextlib
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from latent_diffusion.errors import LatentDiffusionWarning

__all__ = ["collected", "install"]

_of_thread = threading.local()


def install() -> None:
    """Set the hook; it stays, so that a thread that leaves `catch_warnings` meanwhile puts back the same one."""
    warnings.showwarning = _show
    warnings.simplefilter("always", LatentDiffusionWarning)


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
    """Yield a list that receives this package's warnings of this thread until the block ends."""
    notes: list[str] = []
    _of_thread.notes = notes
    install()
    try:
        yield notes
    finally:
        _of_thread.notes = None


def _show(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
    if not issubclass(category, LatentDiffusionWarning):
        return
    notes = getattr(_of_thread, "notes", None)
    if notes is None:
        print(f"warning: {message}", file=sys.stderr)
    elif str(message) not in notes:
        notes.append(str(message))
