"""A progress bar on stderr where someone is watching, silence elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latent_diffusion.diffusion.level import Step

__all__ = ["progress"]


@contextmanager
def progress(label: str, steps: int) -> Iterator["Callable[[Step], None] | None"]:
    """Yield what a pipeline's `on_step` takes: a function that moves a bar, or None without a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=steps)
        yield lambda step: bar.update(task, completed=step.index + 1)
