"""Progress bars on stderr where someone is watching, silence elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from latent_diffusion.diffusion.level import Step
    from latent_diffusion.evaluation import gallery

__all__ = ["parts_progress", "progress"]


@contextmanager
def progress(label: str, steps: int) -> Iterator["Callable[[Step], None] | None"]:
    """Yield what a pipeline's `on_step` takes: a function that moves a bar, or None without a terminal."""
    if not _watched():
        yield None
        return
    with _bar() as bar:
        task = bar.add_task(label, total=steps)
        yield lambda step: bar.update(task, completed=step.index + 1)


@contextmanager
def parts_progress() -> "Iterator[gallery.Progress]":
    """Yield a function of (what, done, total) that shows how far each part of a long work is."""
    if not _watched():
        yield lambda what, done, total: None
        return
    with _bar() as bar:
        task = bar.add_task("starting", total=None)

        def show(what: str, done: int, total: int) -> None:
            nonlocal task
            if bar.tasks[-1].description != what or done < bar.tasks[-1].completed:
                bar.remove_task(task)
                task = bar.add_task(what, total=total)
            bar.update(task, completed=done)

        yield show


def _watched() -> bool:
    """Return whether stderr is a terminal; it is None when the caller closed it."""
    return sys.stderr is not None and sys.stderr.isatty()


def _bar() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
