"""The samples that each process trains on: update s of global batch G takes samples s G .. (s + 1) G - 1 of the run.

Micro-batch m of an update is one run of consecutive numbers, and the processes share it in order of rank: so every
number of processes sees the same micro-batches, and rows gathered over processes keep the global order.
"""

from collections.abc import Iterator

from latent_diffusion.config import RunConfig
from latent_diffusion.errors import ConfigError

__all__ = ["sample_numbers"]


def sample_numbers(run: RunConfig, *, start: int, rank: int, processes: int) -> Iterator[list[int]]:
    """Return an iterator over this process's micro-batches from update `start` to the last.

    Raises:
        ConfigError: the global batch cannot be shared out evenly.
    """
    parts = run.accumulation * processes
    if run.batch_size % parts:
        raise ConfigError(
            f"batch_size: {run.batch_size} pictures cannot be shared by {processes} processes x {run.accumulation} "
            f"micro-batches; use a multiple of {parts}"
        )
    share = run.batch_size // parts

    def draw() -> Iterator[list[int]]:
        for micro in range(start * run.accumulation, run.updates * run.accumulation):
            first = (micro * processes + rank) * share
            yield list(range(first, first + share))

    return draw()
