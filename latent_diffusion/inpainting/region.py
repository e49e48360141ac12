"""Where on a picture inpainting works: a region of the picture, brought to the model's size and back.

    auto     a picture no larger than the working size is used whole; of a larger one the mask's box plus padding is,
             shrunk until it fits, and never enlarged
    masked   the mask's box plus padding, shrunk or enlarged to the working size: the most detail the model can give
    whole    all of the picture, shrunk until it fits

What is missing to the working size is filled by repeating the edge, and cut off again afterwards.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from latent_diffusion.inpainting.masks import bounding_box, max_pool
from latent_diffusion.options.tasks import Area

__all__ = ["Region"]

CLOSE = 32  # px; default padding of "masked", as in A1111's "Only masked padding"
CONTEXT = 0.25  # default padding around the mask's box, of the box's and of the working size's longer side


@dataclass(frozen=True)
class Region:
    """A box of the picture and the sizes it takes on; all in px."""

    box: tuple[int, int, int, int]  # left, top, right, bottom (exclusive) on the picture
    inner: tuple[int, int]  # width and height of the box once resampled
    work: tuple[int, int]  # width and height the model works at, inner plus repeated edge

    @classmethod
    def around(
        cls, mask: np.ndarray, work: tuple[int, int], padding: int | None = None, area: Area = "auto"
    ) -> "Region":
        """Choose the region for a non-empty `mask` (H, W) and a working size (width, height).

        Args:
            mask: not 0 where the picture is repainted.
            work: width and height the model works at.
            padding: picture px kept in view around the mask; None = 32 for "masked", else a quarter of the mask's box
                or of `work`, whichever is longer.
            area: see above.
        """
        height, width = mask.shape
        box = left, top, right, bottom = bounding_box(mask)
        if area == "whole":
            box, padding = (0, 0, width, height), 0
        elif padding is None:
            padding = CLOSE if area == "masked" else round(CONTEXT * max(right - left, bottom - top, *work))
        shrink = _shrink(box, (width, height), work, padding, area)
        spans = []
        for first, last, size, room in ((left, right, width, work[0]), (top, bottom, height, work[1])):
            span = min(size, max(round(room * shrink), last - first))
            start = min(max((first + last - span) // 2, 0), size - span)
            spans.append((start, start + span))
        (x0, x1), (y0, y1) = spans
        inner = (min(work[0], max(1, round((x1 - x0) / shrink))), min(work[1], max(1, round((y1 - y0) / shrink))))
        return cls((x0, y0, x1, y1), inner, work)

    @property
    def resampled(self) -> bool:
        """Whether the region is shrunk to fit."""
        return self.inner != (self.box[2] - self.box[0], self.box[3] - self.box[1])

    def take(self, picture: Image.Image) -> Image.Image:
        """Return the region of an RGB picture at the working size."""
        part = picture.crop(self.box)
        if self.resampled:
            part = part.resize(self.inner, Image.Resampling.LANCZOS)
        return Image.fromarray(self._pad(np.asarray(part), mode="edge"))

    def take_mask(self, mask: np.ndarray) -> np.ndarray:
        """Return the region of a mask (H, W) at the working size (h, w); what was added is kept, not painted."""
        x0, y0, x1, y1 = self.box
        return self._pad(max_pool(mask[y0:y1, x0:x1], self.inner[1], self.inner[0]), mode="constant")

    def give_back(self, painted: Image.Image) -> Image.Image:
        """Return a picture of the working size at the size of the box it belongs into."""
        part = painted.crop((0, 0, *self.inner))
        size = (self.box[2] - self.box[0], self.box[3] - self.box[1])
        return part.resize(size, Image.Resampling.LANCZOS) if self.resampled else part

    def _pad(self, pixels: np.ndarray, mode) -> np.ndarray:
        """Extend (h, w, ...) on the right and at the bottom to the working size."""
        missing = [(0, self.work[1] - pixels.shape[0]), (0, self.work[0] - pixels.shape[1])]
        return np.pad(pixels, missing + [(0, 0)] * (pixels.ndim - 2), mode=mode)


def _shrink(
    box: tuple[int, int, int, int], picture: tuple[int, int], work: tuple[int, int], padding: int, area: Area
) -> float:
    """Return how many picture px become one working px, so that `box` and its padding fit; below 1 enlarges."""
    shown = (box[2] - box[0] + 2 * padding, box[3] - box[1] + 2 * padding)
    fits = max(shown[0] / work[0], shown[1] / work[1])
    everything = max(picture[0] / work[0], picture[1] / work[1])  # past the picture's edge there is nothing to see
    if area == "masked":
        return min(fits, everything)
    return min(max(1.0, fits), max(1.0, everything))
