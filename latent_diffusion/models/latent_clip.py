"""A CLIP of noisy latents: a `LatentTower` for the picture, and one layer over the text states of a diffusion model.

    score(x, t, c) = logit scale * cos(f(x, t), g(c)),   f = tower and layer, g = layer of the mean text state

Trained contrastively, the score is log p(c | x_t) - log p(c) but for a constant: the optimum of the loss is the ratio
of the densities (van den Oord et al. 2018, arXiv:1807.03748, section 2.3). The mean of the text states is read, and not
the end token's alone, so that the text is what the U-Net reads: weights in a prompt, its parts joined by AND and
embeddings in place of a text count, and the place of the end token need not be known.
Reference: Nichol et al. 2021 (GLIDE), arXiv:2112.10741, section 2.4.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_diffusion.models.latent_tower import LatentTower, LatentTowerConfig

__all__ = ["LatentCLIP", "LatentCLIPConfig"]

FIRST_SCALE, LARGEST_SCALE = 1 / 0.07, 100.0
"""Logit scale at the start, and its upper bound (Radford et al. 2021, arXiv:2103.00020, section 2.5)."""


@dataclass(frozen=True)
class LatentCLIPConfig(LatentTowerConfig):
    """Size of the network."""

    text_width: int = field(kw_only=True)  # channels of the text states
    embed_dim: int = 256  # of the features that are compared


class LatentCLIP(LatentTower):
    """How well a text fits the picture in a noisy latent."""

    config: LatentCLIPConfig

    def __init__(self, config: LatentCLIPConfig) -> None:
        super().__init__(config)
        self.image_projection = nn.Linear(config.channels[-1], config.embed_dim, bias=False)
        self.text_projection = nn.Linear(config.text_width, config.embed_dim)  # its bias centres the states
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    @property
    def logit_scale(self) -> Tensor:
        """Inverse temperature of the similarities, (), at most `LARGEST_SCALE`."""
        return self.log_scale.clamp(max=math.log(LARGEST_SCALE)).exp()

    def image_features(self, x: Tensor, t: Tensor) -> Tensor:
        """Return unit features (B, E) for x (B, C, h, w) and network times t (B,)."""
        return F.normalize(self.image_projection(self.features(x, t)), dim=1)

    def text_features(self, context: Tensor) -> Tensor:
        """Return unit features (B, E) of text states (B, L, D)."""
        return F.normalize(self.text_projection(context.mean(dim=1)), dim=1)

    def score(self, image: Tensor, text: Tensor) -> Tensor:
        """Return the score (B,) of unit features (B, E) of pictures and of texts."""
        return self.logit_scale * (image * text).sum(dim=1)
