"""A weight that lies in oneDNN's own order: a convolution's from its first use, a linear layer's once that pays.

Putting it in order costs little; filling memory that was never used before costs several times as much, for the system
hands it over page by page. A convolution reorders its weight at each use that finds it in another order, which is a
quarter of a pass over 256 px where bfloat16 is multiplied in tiles (AMX), and the new memory costs as much as three of
these. Linear layers multiply as fast in either order, bit for bit the same where `either` is set, and a text encoder is
used for few rows: there a weight is put in order when so much is multiplied by it that this earns its memory.

With AVX2 the order of a convolution's weight depends on the size of the map. Brought from one order into another
at each call, by a routine that is written for any two orders, a weight of 2560 x 1280 channels took 1.8 s where the
convolution took 0.08 (oneDNN 3.12): there a weight is ordered anew, once, when the size changes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from latent_diffusion.errors import CheckpointError
from latent_diffusion.nn.reread import Read
from latent_diffusion.runtime.cpu.allocator import large_blocks_apart

__all__ = ["Reordered"]

ENOUGH = 256  # rows multiplied by a linear layer's weight: two steps of a guided picture of 512 px on its smallest map
LEAST = 32  # rows that a use counts for, as it reads all of the weight for however few


def orders_by_size() -> bool:
    """Whether a convolution's order depends on the map, on this processor."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


class Reordered:
    """One weight, shared by the layers that share it."""

    def __init__(
        self, weight: Tensor, reorder: Callable[..., Tensor], *, either: bool = False, read: Read | None = None
    ) -> None:
        """Take the weight as it is, and what reorders it.

        Args:
            weight: nobody writes to it any more.
            reorder: returns it in oneDNN's order.
            either: products with both have the same bits.
            read: returns it again, perhaps, from where it was read.
        """
        self._reorder, self._either, self._rows, self._read, self._compared = reorder, either, 0, read, False
        self._weight: Tensor | None = weight.detach()  # None = given back
        self._middle: Tensor | None = None
        self._size: tuple[int, int, int] | None = None  # of the map that the weight is ordered for
        self.dtype = weight.dtype

    @property
    def kept(self) -> bool:
        """Whether the weight lies in oneDNN's order."""
        return self._weight is not None and self._weight.is_mkldnn

    @property
    def held(self) -> bool:
        """Whether the weight lies in memory."""
        return self._weight is not None

    def used(self, rows: int, size: tuple[int, int, int] | None = None) -> Tensor:
        """Return what gives the product with so many rows (or pixels); `size` (B, H, W) is that of a map."""
        if not orders_by_size():
            size = None
        if self.kept and size != self._size:
            self._weight = self.plain()
        if not self.kept and (self._earned(rows) or not self._either):
            self.keep(size)
        weight = self._weight  # threads that come here together make the same, or each its own size's
        if weight is None:
            weight = self._weight = self.plain()
        return weight if weight.is_mkldnn or self._either else self._ordered(weight, size)

    def middle(self) -> Tensor:
        """Return the middle (O, I) of 3x3 kernels (O, I, 3, 3): the only part that acts on a map of one pixel."""
        if self._middle is not None:
            return self._middle
        middle = self.plain()[:, :, 1, 1].contiguous()
        if self.kept or self._earned(1):
            self._middle = middle
        return middle

    def _earned(self, rows: int) -> bool:
        self._rows += max(rows, LEAST)
        return self._rows >= ENOUGH

    def _ordered(self, weight: Tensor, size: tuple[int, int, int] | None) -> Tensor:
        return self._reorder(weight) if size is None else self._reorder(weight, image=size)

    def keep(self, size: tuple[int, int, int] | None = None) -> None:
        """Put the reordered weight in place of the one it was, in memory of its own: when freed it leaves no hole."""
        weight = self._weight
        if weight is None or not weight.is_mkldnn:
            weight = self.plain()
            with large_blocks_apart():
                self._weight, self._size = self._ordered(weight, size), size

    def plain(self) -> Tensor:
        """Return the weight as it was, bit for bit, to be read: it may lie in memory that others have."""
        weight = self._weight
        if weight is None:
            assert self._read is not None, "only what can be read again is given back"
            return self._read()
        return weight.to_dense() if weight.is_mkldnn else weight

    def copy(self) -> Tensor:
        """Return the weight as it was, bit for bit, as a new tensor."""
        weight = self._weight
        return self.plain() if weight is None or weight.is_mkldnn else weight.clone()

    def give_back(self) -> None:
        """Hold the weight no longer, until it is used again, where it can be read again with the same bits."""
        if self._weight is None or self._read is None:
            return
        if not self._compared:
            self._compared = self._is_in_its_file(self._read)
            if not self._compared:
                self._read = None
                return
        self._weight = self._middle = None

    def _is_in_its_file(self, read: Read) -> bool:
        held = self.plain()
        try:
            again = read()
        except CheckpointError:  # the file was written to since
            return False
        return again.dtype == held.dtype and torch.equal(again, held)
