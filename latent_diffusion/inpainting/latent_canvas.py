"""A canvas in latent space: initial latents, known latents, and the input channels of an inpainting U-Net."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.diffusion.known import Keep, kept, released
from latent_diffusion.diffusion.level import Level
from latent_diffusion.inpainting.fill import fill_hole
from latent_diffusion.inpainting.masks import FULL, REPAINT_FROM, max_pool
from latent_diffusion.inpainting.repainting import Repainting
from latent_diffusion.models.autoencoder import AutoencoderKL

__all__ = ["LatentCanvas"]


@dataclass(frozen=True)
class LatentCanvas:
    """The region of a canvas that is worked on, encoded."""

    latents: Tensor  # (1, C, h, w) of the picture, scaled
    strength: Tensor  # (1, 1, h, w) in [0, 1]: 0 = keep, 1 = repaint
    content: Tensor  # (1, C, h, w) or (B, C, h, w): the picture with what stands in the hole at first
    channels: Tensor | None  # (1, 1 + C, h, w) float32: mask and masked picture, for an inpainting U-Net
    soft: bool  # whether strengths between 0 and 1 mean anything

    @classmethod
    def encode(
        cls,
        image: Tensor,
        hole: np.ndarray,
        repainting: Repainting,
        autoencoder: AutoencoderKL,
        noise: Tensor | None = None,
        *,
        channels: bool = False,
    ) -> "LatentCanvas":
        """Encode a picture and its hole.

        Except for the content "original" the old content is taken out before encoding, so that it does not leak
        through the encoder's receptive field. Of a soft mask, only parts that are repainted in full are taken out.

        An inpainting U-Net reads a mask that is 1 where the picture is repainted (a soft mask where it is at least
        half), and the latents of the picture with mid-grey there. Reference: Rombach et al. 2022, arXiv:2112.10752,
        section 4.5; channel order of the published checkpoints.

        Args:
            image: (1, 3, H, W) in [-1, 1].
            hole: (H, W) uint8, 0 = kept, 255 = repainted.
            repainting: the content of the hole and the mode of the mask.
            autoencoder: encoder of the picture.
            noise: (B, C, h, w) standard normal, for the content "noise".
            channels: whether to make the channels of an inpainting U-Net.
        """
        image = image.to(next(autoencoder.parameters()))
        extra = _channels(image, hole, autoencoder) if channels else None
        if repainting.masked_content != "original":
            image = fill_hole(image, torch.from_numpy(hole == FULL).to(image)[None, None])
        latents = autoencoder.to_latents(image).float()
        strength = _pooled(hole, latents) / FULL
        full = (strength == 1.0).to(latents)
        content = latents
        if repainting.masked_content == "noise" and noise is not None:
            content = torch.lerp(latents.expand_as(noise), noise.to(latents), full.expand_as(noise))
        elif repainting.masked_content == "nothing":
            content = latents * (1 - full)
        return cls(latents, strength, content, extra, repainting.mask_mode == "soft")

    def start(self, start_from: str, noise: Tensor, level: Level) -> Tensor:
        """Return x (B, C, h, w) at `level`: pure noise, or the content with noise on it."""
        return noise if start_from == "noise" else add_noise(self.content, noise, level.alpha, level.sigma)

    def keep(self, levels: Sequence[Level]) -> Keep:
        """Return what keeps the rest: at all levels, or with a soft mask each place until its strength."""
        return released(self.latents, self.strength, levels) if self.soft else kept(self.latents, self.strength)


def _channels(image: Tensor, hole: np.ndarray, autoencoder: AutoencoderKL) -> Tensor:
    """Return mask and masked picture (1, 1 + C, h, w) float32."""
    repainted = (hole >= REPAINT_FROM).astype(hole.dtype)
    latents = autoencoder.to_latents(image * (1 - torch.from_numpy(repainted).to(image))).float()
    return torch.cat([_pooled(repainted, latents), latents], dim=1)


def _pooled(mask: np.ndarray, latents: Tensor) -> Tensor:
    """Return a mask (H, W) on the grid of `latents`, (1, 1, h, w): of each cell the strongest pixel."""
    return torch.from_numpy(max_pool(mask, *latents.shape[-2:])).to(latents)[None, None]
