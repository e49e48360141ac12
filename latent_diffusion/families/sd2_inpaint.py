"""Stable Diffusion 2.x for inpainting: the U-Net also reads the mask and the latents of the masked picture.

Reference: Rombach et al. 2022, arXiv:2112.10752, section 4.5;
huggingface.co/stabilityai/stable-diffusion-2-inpainting.
"""

from dataclasses import replace

from latent_diffusion.families import sd2

__all__ = ["ARCHITECTURE", "AUTOENCODER", "SCHEDULER", "TEXT", "UNET"]

ARCHITECTURE = "stable-diffusion-v2-inpainting"  # in ModelSpec

AUTOENCODER = sd2.AUTOENCODER

UNET = replace(sd2.UNET, in_channels=9)  # 4 noisy latents, 1 mask, 4 latents of the picture with the hole

TEXT = sd2.TEXT

SCHEDULER = dict(sd2.SCHEDULER)
