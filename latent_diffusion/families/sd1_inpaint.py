"""Stable Diffusion 1.x for inpainting: the U-Net also reads the mask and the latents of the masked picture.

Reference: Rombach et al. 2022, arXiv:2112.10752, section 4.5;
huggingface.co/stable-diffusion-v1-5/stable-diffusion-inpainting.
"""

from dataclasses import replace

from latent_diffusion.families import sd1

__all__ = ["ARCHITECTURE", "AUTOENCODER", "SCHEDULER", "TEXT", "UNET"]

ARCHITECTURE = "stable-diffusion-v1-inpainting"  # in ModelSpec

AUTOENCODER = sd1.AUTOENCODER

UNET = replace(sd1.UNET, in_channels=9)  # 4 noisy latents, 1 mask, 4 latents of the picture with the hole

TEXT = sd1.TEXT

SCHEDULER = dict(sd1.SCHEDULER)
