"""Compute in one's own formats, whatever the caller has switched on for theirs."""

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["undisturbed"]


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Switch gradients, autocast and a default device off, for this thread, until the block or the function ends.

    The default dtype counts for all threads, and cannot be switched off for one: tensors of floats are made with a
    dtype of their own.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))  # entered only where it is needed: it slows every operation
        yield
