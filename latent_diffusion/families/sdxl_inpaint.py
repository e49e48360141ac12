"""Stable Diffusion XL for inpainting: the U-Net also reads the mask and the latents of the masked picture.

Reference: Rombach et al. 2022, arXiv:2112.10752, section 4.5;
huggingface.co/diffusers/stable-diffusion-xl-1.0-inpainting-0.1.
"""

from dataclasses import replace

from latent_diffusion.families import sdxl

__all__ = ["ARCHITECTURE", "AUTOENCODER", "SCHEDULER", "TEXT", "UNET", "ZEROS_FOR_EMPTY_PROMPT"]

ARCHITECTURE = "stable-diffusion-xl-v1-inpainting"  # in ModelSpec

AUTOENCODER = sdxl.AUTOENCODER

UNET = replace(sdxl.UNET, in_channels=9)  # 4 noisy latents, 1 mask, 4 latents of the picture with the hole

TEXT = sdxl.TEXT

SCHEDULER = dict(sdxl.SCHEDULER)

ZEROS_FOR_EMPTY_PROMPT = True
