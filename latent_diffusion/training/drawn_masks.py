"""Masks on which an inpainting U-Net is trained: boxes, or the whole picture.

A mask is 1 where the picture is repainted. A quarter of the samples is repainted whole, as in the training of the
published inpainting models (huggingface.co/runwayml/stable-diffusion-inpainting, "Training").
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from latent_diffusion.randomness import generator

__all__ = ["draw_masks"]

WHOLE = 0.25
"""Share of the samples that are repainted whole."""
BOXES = 3
"""Largest number of boxes in a mask."""
SIDES = (0.125, 0.75)
"""Smallest and largest side of a box, in sides of the picture."""


def draw_masks(seed: int, samples: Sequence[int], height: int, width: int) -> Tensor:
    """Return a mask for each sample number, (B, 1, H, W) float32 of 0 and 1, on the CPU."""
    return torch.from_numpy(np.stack([_mask(generator(seed, "mask", n), height, width) for n in samples]))[:, None]


def _mask(draw: np.random.Generator, height: int, width: int) -> np.ndarray:
    if draw.random() < WHOLE:
        return np.ones((height, width), np.float32)
    mask = np.zeros((height, width), np.float32)
    for _ in range(int(draw.integers(1, BOXES + 1))):
        rows, columns = (max(1, round(side * draw.uniform(*SIDES))) for side in (height, width))
        top, left = int(draw.integers(height - rows + 1)), int(draw.integers(width - columns + 1))
        mask[top : top + rows, left : left + columns] = 1.0
    return mask
