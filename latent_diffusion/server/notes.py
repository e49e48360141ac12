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

__all__ = ["collected"]

_of_thread = threading.local()


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
    """Yield a list that receives this package's warnings of this thread until the block ends."""
    notes: list[str] = []
    _of_thread.notes = notes
    before, warnings.showwarning = warnings.showwarning, _show
    warnings.simplefilter("always", LatentDiffusionWarning)
    try:
        yield notes
    finally:
        _of_thread.notes = None
        warnings.showwarning = before if before is not _show else warnings.showwarning


def _show(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
    if not issubclass(category, LatentDiffusionWarning):
        return
    notes = getattr(_of_thread, "notes", None)
    if notes is None:
        print(f"warning: {message}", file=sys.stderr)
    elif str(message) not in notes:
        notes.append(str(message))
