"""The loss of a part of each picture: a weight for every cell of the latents, from the picture's mask.

    loss = sum_i w_i d_i / sum_i w_i,   w = mask + outside (1 - mask)

over all cells and channels: a picture counts the same, however small its mask. The mask of a cell is the mean of its
pixels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from latent_diffusion.config import Section
from latent_diffusion.data.batches.folder import ImageFolder
from latent_diffusion.data.batches.loader import Batch
from latent_diffusion.data.batches.picture_masks import MaskSource, PictureMasks

__all__ = ["Areas", "MaskedSettings", "PictureAreas"]


class MaskedSettings(Section):
    """The `objective.masked:` section: which part of a picture is learned."""

    source: MaskSource = "file"
    """Masks: the file `NAME.mask.png` beside `NAME.png`, or the picture's own transparency."""
    outside: float = Field(default=0.0, ge=0, le=1)
    """Weight of what is outside, against 1 inside."""
    prior: float = Field(default=0.0, ge=0)
    """Weight of the distance to the base's prediction outside; for adapters and words."""


class Areas(NamedTuple):
    """Weights of the cells, (B, 1, h, w) each: of the loss, and what is outside."""

    weights: Tensor
    outside: Tensor


class PictureAreas:
    """The weights of the cells of each sample."""

    def __init__(self, data: ImageFolder, settings: MaskedSettings, factor: int) -> None:
        """Read all masks; `factor` is the number of pixels a cell has on each side.

        Raises:
            DataError: as `PictureMasks`.
        """
        self._data, self._settings, self._factor = data, settings, factor
        self.masks = PictureMasks(data, settings.source)
        self._kept: dict[int, Tensor] = {}
        if not data.random_crops:
            self._kept = {row: self._cells(row, self.masks.fitted(row)) for row in range(len(data))}

    def _cells(self, row: int, mask: Tensor | None) -> Tensor:
        """Return the share of each cell that is inside, (1, h, w)."""
        if mask is None:
            width, height = self._data.size_of(row)
            return torch.ones(1, height // self._factor, width // self._factor)
        return F.avg_pool2d(mask[None], self._factor)

    def __call__(self, batch: Batch) -> Areas:
        """Return the weights of B samples, on the CPU."""
        cells: list[Tensor] = []
        for number, row, flipped in zip(batch.sample, batch.row, batch.flipped, strict=True):
            if row in self._kept:
                cells.append(self._kept[row].flip(-1) if flipped else self._kept[row])
            else:
                cells.append(self._cells(row, self.masks.of_sample(number, row, flipped=flipped)))
        inside = torch.stack(cells)
        return Areas(inside + self._settings.outside * (1 - inside), 1 - inside)
