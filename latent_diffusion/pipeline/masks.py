"""Masks: what is repainted, at the picture's size, at the model's size and on the latent grid.

One rule for every kind of mask file: the picture is read as 8-bit grey (16-bit is scaled, colour becomes luma,
transparent parts are black); a pixel of 128 or more is repainted, the others are kept bit for bit.
"""

import os

import numpy as np
from PIL import Image, ImageFilter

from latent_diffusion.data.images import load_image
from latent_diffusion.errors import DataError

__all__ = ["REPAINT_FROM", "bounding_box", "inward_weights", "load_mask", "max_pool"]

REPAINT_FROM = 128
BLACK = (0, 0, 0)


def load_mask(source: str | os.PathLike[str] | Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Return the mask in `source` as bool (H, W), True where the picture is repainted.

    Args:
        source: a file or a picture.
        size: width and height of the picture it belongs to, in px.

    Raises:
        DataError: no readable picture, or of another size than the picture.
    """
    mask = load_image(source, background=BLACK).convert("L")
    if mask.size != size:
        raise DataError(
            f"the mask is {mask.width}x{mask.height} px but the picture is {size[0]}x{size[1]} px; "
            "draw the mask at the picture's size"
        )
    return np.asarray(mask) >= REPAINT_FROM


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom (exclusive) of the True part of `mask` (H, W), which is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def max_pool(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return `mask` (H, W) bool on a grid of (height, width): True in every cell that a True pixel touches.

    Nearest or mean sampling would lose strokes thinner than a cell; here a single pixel survives.
    """
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int64)
    sums[1:, 1:] = mask.cumsum(0).cumsum(1)  # integral image: the count in a window is four look-ups
    top, bottom = _windows(mask.shape[0], height)
    left, right = _windows(mask.shape[1], width)
    counts = sums[bottom][:, right] - sums[top][:, right] - sums[bottom][:, left] + sums[top][:, left]
    return counts > 0


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
