"""The content of the hole before it is repainted."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["fill_hole"]


def fill_hole(image: Tensor, mask: Tensor) -> Tensor:
    """Return `image` (1, 3, H, W) with the hole (`mask` (1, 1, H, W) = 1) filled smoothly from its surroundings.

    Averages what is known over ever larger cells, then fills each level's gaps from the coarser one ("push-pull",
    Gortler et al. 1996, The Lumigraph, section 3.4). Without anything known the hole is 0, mid-grey.
    """
    known = 1 - mask
    height, width = image.shape[-2:]
    if height == width == 1 or not mask.any():
        return image * known
    weight = F.avg_pool2d(known, 2, ceil_mode=True)
    coarse = F.avg_pool2d(image * known, 2, ceil_mode=True) / weight.clamp_min(1e-6)
    coarse = fill_hole(coarse, (weight == 0).to(image))
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return torch.where(known.bool(), image, smooth)
