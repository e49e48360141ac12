"""How a weight is read again from the file it came from, so that memory need not hold it meanwhile."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["Read", "note_reader", "reader_of"]

Read = Callable[[], Tensor]
"""Returns the numbers of a weight, in memory of its own."""

_readers = WeakIdKeyDictionary()  # by the parameter


def note_reader(weight: nn.Parameter, read: Read) -> None:
    """Note what reads `weight` again. Whoever uses it compares the numbers: the weight may have been written to."""
    _readers[weight] = read


def reader_of(weight: Tensor) -> Read | None:
    """Return what reads `weight` again; None where nothing does."""
    return _readers.get(weight)
