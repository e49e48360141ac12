"""Give what was painted the colours of its surroundings, measured where both are known.

Around the hole the model has drawn the picture anew as well, and there the original is known: what the drawing differs
by on that ring, in mean and spread of each channel, it differs by inside. Reference: Reinhard et al. 2001, "Color
transfer between images", eq. 10 and 11, fitted on the ring instead of two whole pictures.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["match_colors"]

RING = 16  # px around the hole, at the working size
MOST_GAIN = 1.5  # of a channel's spread, either way: a flat ring has little contrast to measure


def match_colors(painted: Tensor, original: Tensor, hole: Tensor) -> Tensor:
    """Return `painted` with each channel scaled and shifted so that on the ring around the hole it is as the original.

    Args:
        painted: (B, 3, H, W) float32 in [-1, 1], what the model drew.
        original: (1, 3, H, W) float32 in [-1, 1], the picture; its values in the hole are not looked at.
        hole: (1, 1, H, W), not 0 where the picture is repainted. Without surroundings `painted` comes back as it is.
    """
    touched = (hole > 0).float()
    ring = F.max_pool2d(touched, 2 * RING + 1, stride=1, padding=RING) - touched
    if not ring.any():
        return painted
    drawn_mean, drawn_spread = _moments(painted, ring)
    mean, spread = _moments(original, ring)
    gain = (spread / drawn_spread.clamp_min(1e-3)).clamp(1 / MOST_GAIN, MOST_GAIN)
    return ((painted - drawn_mean) * gain + mean).clamp(-1, 1)


def _moments(images: Tensor, ring: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (B, 3, 1, 1) of `images` (B, 3, H, W) on the ring (1, 1, H, W)."""
    count = ring.sum()
    mean = (images * ring).sum((2, 3), keepdim=True) / count
    variance = ((images - mean).square() * ring).sum((2, 3), keepdim=True) / count
    return mean, torch.sqrt(variance)
