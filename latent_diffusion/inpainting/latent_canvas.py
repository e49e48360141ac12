"""What is known of the canvas in latent space: what the sampler starts from, keeps, and is told."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.diffusion.known import keep_known, release_known
from latent_diffusion.diffusion.level import Denoise, Level
from latent_diffusion.inpainting.canvas import Canvas
from latent_diffusion.inpainting.fill import fill_hole
from latent_diffusion.inpainting.masks import FULL, REPAINT_FROM, max_pool
from latent_diffusion.models.autoencoder import AutoencoderKL

__all__ = ["Known"]


@dataclass(frozen=True)
class Known:
    """The canvas as latents."""

    latents: Tensor  # (1, C, h, w) of the picture, scaled
    strength: Tensor  # (1, 1, h, w) in [0, 1]: 0 = keep, 1 = repaint
    content: Tensor  # (1, C, h, w) or (B, C, h, w): the picture with what stands in the hole at first
    soft: bool  # whether strengths between 0 and 1 mean anything

    @classmethod
    def encode(cls, canvas: Canvas, autoencoder: AutoencoderKL, noise: Tensor | None = None) -> "Known":
        """Encode the region of `canvas`.

        Except for the content "original" the old content is taken out before encoding, so that it does not leak
        through the encoder's receptive field. Only what a soft mask repaints in full is taken out.

        Args:
            canvas: with a mask that is not empty.
            autoencoder: encoder of the picture.
            noise: (B, C, h, w) standard normal, for the content "noise".
        """
        content = canvas.settings.masked_content
        image, hole = canvas.view()
        image = image.to(next(autoencoder.parameters()))
        emptied = torch.from_numpy(hole == FULL).to(image)[None, None]
        if content != "original":
            image = fill_hole(image, emptied)
        latents = autoencoder.to_latents(image).float()
        strength = torch.from_numpy(max_pool(hole, *latents.shape[-2:])).to(latents)[None, None] / FULL
        full = (strength == 1.0).to(latents)
        start = latents
        if content == "noise" and noise is not None:
            start = torch.lerp(latents.expand_as(noise), noise.to(latents), full.expand_as(noise))
        elif content == "nothing":
            start = latents * (1 - full)
        return cls(latents, strength, start, canvas.settings.mask_mode == "soft")

    def start(self, start_from: str, noise: Tensor, level: Level) -> Tensor:
        """Return x (B, C, h, w) at `level`: pure noise, or the content with noise on it."""
        return noise if start_from == "noise" else add_noise(self.content, noise, level.alpha, level.sigma)

    def kept_by(self, denoise: Denoise, levels: Sequence[Level]) -> Denoise:
        """Return `denoise` that keeps what is known: the whole time, or each place until its strength says."""
        if self.soft:
            return release_known(denoise, self.latents, self.strength, levels)
        return keep_known(denoise, self.latents, self.strength)


def told(canvas: Canvas, autoencoder: AutoencoderKL) -> Tensor:
    """Return what an inpainting U-Net is told beside the prompt: mask and masked picture, (1, 1 + C, h, w) float32.

    The mask is 1 where the picture is repainted (a soft mask where it is at least half), the masked picture is the
    latents of the picture with mid-grey there.
    Reference: Rombach et al. 2022, arXiv:2112.10752, section 4.5; channel order of the published checkpoints.
    """
    image, hole = canvas.view()
    image = image.to(next(autoencoder.parameters()))
    repainted = (hole >= REPAINT_FROM).astype(hole.dtype)
    latents = autoencoder.to_latents(image * (1 - torch.from_numpy(repainted).to(image))).float()
    mask = torch.from_numpy(max_pool(repainted, *latents.shape[-2:])).to(latents)[None, None]
    return torch.cat([mask, latents], dim=1)
