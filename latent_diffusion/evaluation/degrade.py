"""Degraded copies of pictures: what a good but blurry or noisy model would draw, for calibration and reference rows."""

import torch.nn.functional as F
from torch import Tensor

from latent_diffusion.randomness import normal

__all__ = ["DEGRADATIONS", "degrade"]

DEGRADATIONS = ("64 px", "32 px", "noise")
NOISE = 12 / 127.5
"""Standard deviation of the noise: 12 of 255 grey levels, in units of [-1, 1]."""


def degrade(images: Tensor, how: str, seed: int = 0) -> Tensor:
    """Return images (B, 3, H, W) in [-1, 1] degraded, same shape, clipped.

    Args:
        images: pictures.
        how: "64 px" or "32 px" (scaled down to that and back, bicubic), or "noise" (Gaussian, 12 of 255 levels).
        seed: of the noise; picture k of the batch has its own stream.
    """
    if how == "noise":
        draws = normal(seed, "evaluation noise", range(len(images)), images.shape[1:])
        return (images + NOISE * draws.to(images.device)).clamp(-1, 1)
    side = int(how.removesuffix(" px"))
    small = F.interpolate(images, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
    return F.interpolate(small, images.shape[-2:], mode="bicubic", align_corners=False).clamp(-1, 1)
