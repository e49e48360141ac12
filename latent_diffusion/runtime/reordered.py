"""A weight that oneDNN finds in its own order once so much is multiplied by it that this earns its memory.

Until then oneDNN reorders it at each use, in memory that the use before gave back. That costs little; filling memory
that was never used before costs several times as much, for the system hands it over page by page. So the weights of a
large network take as long to reorder for good as several passes over a tiny picture take, and as a fraction of one over
a large picture. The products are the same bit for bit.
"""

from collections.abc import Callable

from torch import Tensor

from latent_diffusion.runtime.allocator import keep_large_blocks, large_blocks_apart

__all__ = ["Reordered"]

ENOUGH = 256  # rows multiplied by a weight: two steps of a guided picture of 512 px on its smallest map
LEAST = 32  # rows that a use counts for, as it reorders all of the weight for however few


class Reordered:
    """One weight, shared by the layers that share it."""

    def __init__(self, weight: Tensor, reorder: Callable[[Tensor], Tensor]) -> None:
        """Take the weight as it is, and what puts it into oneDNN's order."""
        self._weight, self._reorder, self._rows = weight.detach(), reorder, 0
        self.dtype = weight.dtype

    @property
    def kept(self) -> bool:
        """Whether the weight lies in oneDNN's order."""
        return self._weight.is_mkldnn

    def used(self, rows: int) -> Tensor:
        """Return the weight, in either order, to multiply so many rows (or pixels) by."""
        if not self.kept:
            self._rows += max(rows, LEAST)
            if self._rows >= ENOUGH:
                self.keep()
        return self._weight

    def keep(self) -> None:
        """Put the reordered weight in place of the one it was, in memory of its own: when freed it leaves no hole."""
        weight = self._weight  # threads that come here together make the same
        if not weight.is_mkldnn:
            large_blocks_apart()
            self._weight = self._reorder(weight)
            keep_large_blocks()

    def plain(self) -> Tensor:
        """Return the weight as it was, bit for bit, to be read: it may lie in memory that others have."""
        weight = self._weight
        return weight.to_dense() if weight.is_mkldnn else weight

    def copy(self) -> Tensor:
        """Return the weight as it was, bit for bit, as a new tensor."""
        weight = self._weight
        return weight.to_dense() if weight.is_mkldnn else weight.clone()
