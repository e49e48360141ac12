"""Keep what is known of a picture while the rest is drawn: inpainting as a wrapper of the denoiser.

Where the picture is known its x0 is known, so the estimate is replaced by it:

    x0 = mask * x0(network) + (1 - mask) * known

Every sampler builds the next x from x and x0, and ends on x0 itself; so the known part follows its own noising path and
arrives unchanged. With DDIM this equals blending in the noised picture after every step (Lugmayr et al. 2022,
arXiv:2201.09865, eq. 8, without resampling), and with DDPM the known part is a draw of q(x_{t-1} | x_t, known).
"""

import torch
from torch import Tensor

from latent_diffusion.diffusion.level import Denoise, Level

__all__ = ["keep_known"]


def keep_known(denoise: Denoise, known: Tensor, mask: Tensor) -> Denoise:
    """Return `denoise` with x0 replaced by `known` where mask is 0.

    Args:
        denoise: the estimator to wrap.
        known: latents of the picture, (B, C, h, w) or (1, C, h, w), scaled as the network's.
        mask: (B, 1, h, w) or (1, 1, h, w) float in [0, 1]; 1 = repaint, 0 = keep.
    """

    def blended(x: Tensor, level: Level) -> Tensor:
        x0 = denoise(x, level)
        return torch.lerp(known.to(x0).expand_as(x0), x0, mask.to(x0).expand_as(x0))

    return blended
