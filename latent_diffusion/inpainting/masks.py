"""Masks: what is repainted, at the picture's size, at the model's size and on the latent grid.

One rule for every kind of mask file: the picture is read as 8-bit grey (16-bit is scaled, colour becomes luma,
transparent parts are black); a pixel of 128 or more is repainted, the others are kept bit for bit. In soft mode the
grey is the strength of each pixel instead, from 0, kept bit for bit, to 255, repainted with the strength of the call.

A mask here is uint8 (H, W): 0 = kept, 255 = repainted, between them only in soft mode.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops, ImageFilter

from latent_diffusion.data.pictures.images import ImageSource, load_image
from latent_diffusion.errors import DataError
from latent_diffusion.options.tasks import MaskMode

__all__ = [
    "FULL",
    "REPAINT_FROM",
    "bounding_box",
    "fade_in",
    "grow",
    "inward_weights",
    "load_mask",
    "max_pool",
    "thresholded",
]

REPAINT_FROM = 128
FULL = 255
BLACK = (0, 0, 0)


def load_mask(
    source: ImageSource,
    size: tuple[int, int],
    mode: MaskMode = "binary",
    channel: str = "grey",
    *,
    invert: bool = False,
) -> np.ndarray:
    """Return the mask in `source`, uint8 (H, W).

    Args:
        source: a file or a picture.
        size: width and height of the picture it belongs to, in px.
        mode: "binary" makes every pixel 0 or 255, "soft" keeps the greys.
        channel: "grey", or "alpha": what is transparent is repainted, as in a picture with an erased hole.
        invert: swap what is repainted and what is kept.

    Raises:
        DataError: no readable picture, or of another size than the picture.
    """
    if channel == "alpha":
        mask = load_image(source, background=None)
        if mask.mode != "RGBA":
            raise DataError("mask_channel 'alpha': the mask has no transparency; use 'grey', or a picture with a hole")
        mask = ImageChops.invert(mask.getchannel("A"))
    else:
        mask = load_image(source, background=BLACK).convert("L")
    if invert:
        mask = ImageChops.invert(mask)
    if mask.size != size:
        raise DataError(
            f"the mask is {mask.width}x{mask.height} px but the picture is {size[0]}x{size[1]} px; "
            "draw the mask at the picture's size"
        )
    grey = np.array(mask)
    return grey if mode == "soft" else thresholded(grey)


def thresholded(grey: np.ndarray) -> np.ndarray:
    """Return `grey` (H, W) uint8 with 255 for 128 or more and 0 for less."""
    return np.where(grey >= REPAINT_FROM, FULL, 0).astype(np.uint8)


def grow(mask: np.ndarray, distance: int) -> np.ndarray:
    """Return `mask` (H, W) uint8 with every pixel as strong as the strongest within `distance` px (a square)."""
    if not distance:
        return mask
    values = torch.from_numpy(mask).float()[None, None]
    for kernel, padding in (((1, 2 * distance + 1), (0, distance)), ((2 * distance + 1, 1), (distance, 0))):
        values = F.max_pool2d(values, kernel, stride=1, padding=padding)
    return values[0, 0].to(torch.uint8).numpy()


def fade_in(mask: np.ndarray, distance: int) -> np.ndarray:
    """Return `mask` (H, W) uint8 weakened near its edge, in full from `distance` px inside on.

    What the mask touches keeps a strength of at least 1, so that it is still the same mask.
    """
    weakened = np.rint(mask * inward_weights(mask > 0, distance)).astype(np.uint8)
    return np.maximum(weakened, (mask > 0).astype(np.uint8))


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom (exclusive) of what `mask` (H, W) touches, which is something."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def max_pool(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return `mask` (H, W) on a grid of (height, width): in every cell the strongest of the pixels that it touches.

    Nearest or mean sampling would lose strokes thinner than a cell; here a single pixel survives.
    """
    for axis, cells in ((0, height), (1, width)):
        first, end = _windows(mask.shape[axis], cells)
        room = [(0, 0), (0, 0)]
        room[axis] = (0, 1)  # so that an end is an index
        bounds = np.stack([first, end], axis=1).flatten()
        mask = np.maximum.reduceat(np.pad(mask, room), bounds, axis=axis).take(np.arange(0, 2 * cells, 2), axis)
    return mask


def _windows(size: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last + 1 of the pixels that each of `cells` equal parts of `size` pixels touches."""
    cell = np.arange(cells)
    return cell * size // cells, -(-(cell + 1) * size // cells)


def inward_weights(mask: np.ndarray, feather: int) -> np.ndarray:
    """Return the weight of the new picture, float32 (H, W): 0 outside `mask`, rising to 1 within `feather` px inside.

    Nothing outside the mask gets weight, so the feather never touches a pixel that is kept. Strokes too thin for the
    whole ramp are scaled so that their middle still reaches 1.
    """
    depth = mask.astype(np.uint8)  # px from the mask's edge, counted up to feather + 1
    inside = Image.fromarray(depth)
    for _ in range(feather):
        inside = inside.filter(ImageFilter.MinFilter(3))
        depth = depth + np.asarray(inside)
    reach = Image.fromarray(depth).filter(ImageFilter.MaxFilter(2 * feather + 1)) if feather else depth
    return np.where(mask, depth / np.maximum(np.asarray(reach), 1), 0).astype(np.float32)
