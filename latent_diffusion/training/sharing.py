"""Work that all processes share: each does its part, then all have every part."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from accelerate.utils import gather_object

from latent_diffusion.training.objective import Share

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["interleaved", "shared"]

T = TypeVar("T")


def shared(accelerator: "Accelerator", work: Callable[[Share], T]) -> list[T]:
    """Return the parts of all processes in order of rank.

    A process that fails still takes part in the exchange, so the others do not wait for it.

    Raises:
        Exception: that of this process; RuntimeError where only another one failed.
    """
    fault: Exception | None = None
    parts: list[T] = []
    try:
        parts = [work(Share(accelerator.process_index, accelerator.num_processes))]
    except Exception as caught:
        fault = caught
    words = None if fault is None else f"{type(fault).__name__}: {fault}"
    everything = gather_object([(parts, words)])
    if fault is not None:
        raise fault
    failed = [words for _, words in everything if words is not None]
    if failed:
        raise RuntimeError(f"in another process: {failed[0]}")
    return [part for parts, _ in everything for part in parts]


def interleaved(parts: list[list[T]]) -> list[T]:
    """Return the items of all shares in their order: the first of each share, the second of each, and so on."""
    longest = max((len(part) for part in parts), default=0)
    return [part[k] for k in range(longest) for part in parts if k < len(part)]
