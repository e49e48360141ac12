"""Arrays as pictures: one picture or mask in numpy or torch.

    numpy   (H, W), (H, W, C) or (1, H, W, C)
    torch   (H, W), (C, H, W) or (1, C, H, W)

C is 1 (grey), 3 (RGB) or 4 (RGBA, the last being opacity). Values are uint8 0..255, bool, or floats 0..1, as in
diffusers.
"""

import numpy as np
from PIL import Image
from torch import Tensor

from latent_diffusion.errors import ConfigError

__all__ = ["from_array"]

CHANNELS = (1, 3, 4)


def from_array(values: np.ndarray | Tensor) -> Image.Image:
    """Return the picture in an array.

    Raises:
        ConfigError: another shape, dtype or range.
    """
    tensor = isinstance(values, Tensor)
    array = values.detach().float().cpu().numpy() if tensor and values.is_floating_point() else values
    array = np.asarray(array.detach().cpu() if isinstance(array, Tensor) else array)
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3 and tensor:
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] not in CHANNELS):
        order = "(H, W), (C, H, W) or (1, C, H, W)" if tensor else "(H, W), (H, W, C) or (1, H, W, C)"
        raise ConfigError(f"a picture of shape {tuple(values.shape)}: give one, {order} with C 1, 3 or 4")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(_eight_bit(array)))


def _eight_bit(array: np.ndarray) -> np.ndarray:
    """Return the values as uint8."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if not np.issubdtype(array.dtype, np.floating):
        raise ConfigError(f"a picture of {array.dtype}: give uint8 0..255, bool, or floats 0..1")
    least, most = float(array.min()), float(array.max())
    if not (least >= 0.0 and most <= 1.0):  # NaN fails the comparison too
        raise ConfigError(f"a picture of floats from {least:g} to {most:g}: give 0..1, or uint8 0..255")
    return np.rint(array.astype(np.float32) * 255).astype(np.uint8)
