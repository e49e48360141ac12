"""Masks of pictures: a grey picture beside each, or its own transparency, fitted as the picture is.

White (opaque) is inside, black (transparent) is outside, greys are between.
"""

import hashlib
import logging
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from latent_diffusion.data.batches.folder import CENTRE, ImageFolder
from latent_diffusion.data.pictures.fitting import shown
from latent_diffusion.data.pictures.images import decode_image
from latent_diffusion.errors import DataError

__all__ = ["MaskSource", "PictureMasks", "warn_of_unused_masks"]

logger = logging.getLogger(__name__)
MaskSource = Literal["file", "alpha"]
LOOKED_AT = 10_000  # rows in which a mask is looked for


class PictureMasks:
    """The masks of a data set; all are read once, so that a bad one is named before the first step."""

    def __init__(self, data: ImageFolder, source: MaskSource) -> None:
        """Take the pictures and where their masks are.

        Raises:
            DataError: a mask is damaged, has another size than its picture, or is black; or no picture has one.
        """
        self._data, self._source = data, source
        digest, missing, empty = hashlib.blake2b(source.encode(), digest_size=16), 0, list[str]()
        for row in range(len(data)):
            mask = self._stored(row)
            digest.update(b"none" if mask is None else mask.tobytes())
            missing += mask is None
            if mask is not None and mask.getextrema()[1] == 0:
                empty.append(self._name(row))
        if missing == len(data):
            looked = (
                "NAME.mask.png beside NAME.png, or mask_file in a table"
                if source == "file"
                else "transparency in the pictures"
            )
            raise DataError(f"no picture of {len(data)} has a mask; looked for {looked}")
        if empty:
            raise DataError(
                f"{len(empty)} of {len(data)} masks are black, so nothing of their pictures would count: "
                f"{', '.join(map(repr, empty[:10]))}; paint what counts white, or remove the mask to count it whole"
            )
        if missing:
            logger.warning("%d of %d pictures have no mask; they count whole", missing, len(data))
        self.digest = digest.hexdigest()

    def _name(self, row: int) -> str:
        return str(self._data.rows[row]["file_name"])

    def _stored(self, row: int) -> Image.Image | None:
        """Return the mask of a row as it is stored, 8-bit grey, or None."""
        if self._source == "file":
            mask = self._data.mask(row)
        else:
            part, k = self._data.place(row)
            name, most = self._name(row), self._data.config.max_pixels
            picture = decode_image(part.read(k), name=name, background=None, max_pixels=most)
            mask = picture.getchannel("A") if picture.mode == "RGBA" else None
        if mask is not None and mask.size != self._data.stored_size(row):
            width, height = self._data.stored_size(row)
            raise DataError(
                f"the mask of {self._name(row)!r} is {mask.width}x{mask.height} px, the picture {width}x{height} px; "
                f"draw the mask at the picture's size"
            )
        return mask

    def fitted(self, row: int, share: tuple[float, float] = CENTRE) -> Tensor | None:
        """Return the mask of a row at the size it is trained at, (H, W) float32 in [0, 1]; None where it has none.

        Args:
            row: of the data set.
            share: place of the crop, as in `ImageFolder.image`; borders of `fit: pad` are outside.
        """
        mask = self._stored(row)
        if mask is None:
            return None
        size, resample = self._data.size_of(row), Image.Resampling.BOX
        if self._data.place(row)[0].config.fit == "pad":
            mask = ImageOps.pad(mask, size, resample, color=0)
        else:
            width, height = shown(mask.size, size)
            top, left = (mask.height - height) * share[0], (mask.width - width) * share[1]
            mask = mask.resize(size, resample, box=(left, top, left + width, top + height))
        return torch.from_numpy(np.array(mask)).float() / 255

    def of_sample(self, number: int, row: int, *, flipped: bool) -> Tensor | None:
        """Return the mask that sample `number` has, (H, W) float32 in [0, 1]; None where the picture has none."""
        mask = self.fitted(row, self._data.share_of(number, row))
        return mask.flip(-1) if mask is not None and flipped else mask


def warn_of_unused_masks(data: ImageFolder) -> None:
    """Warn of masks beside the pictures of a run that reads none."""
    found = 0
    for part in data.parts:
        if "mask_file" in part.source.fields:
            found += sum("mask_file" in part.source.row(int(k)) for k in part.kept[:LOOKED_AT])
        if not found and len(part.kept):
            found += part.mask(int(part.kept[0])) is not None
    if found:
        logger.warning("%s has masks, which this run does not read; set objective.masked to use them", _named(data))


def _named(data: ImageFolder) -> str:
    return ", ".join(str(part.config.path) for part in data.parts)
