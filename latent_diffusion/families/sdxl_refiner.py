"""Stable Diffusion XL refiner, 1024 px, for the last steps of base's path: values of the published folder.

It reads the second text tower only, and in place of the target size an aesthetic score.
Reference: Podell et al. 2023, arXiv:2307.01952, section 2.5;
huggingface.co/stabilityai/stable-diffusion-xl-refiner-1.0.
"""

from latent_diffusion.families import sdxl
from latent_diffusion.models.unet import UNetConfig

__all__ = ["ARCHITECTURE", "AUTOENCODER", "SCHEDULER", "TEXT", "UNET"]

ARCHITECTURE = "stable-diffusion-xl-v1-refiner"  # in ModelSpec

AUTOENCODER = sdxl.AUTOENCODER

UNET = UNetConfig(
    sample_size=128,
    block_out_channels=(384, 768, 1536, 1536),
    layers_per_block=2,
    cross_attention=(False, True, True, False),
    num_attention_heads=(6, 12, 24, 24),  # 64 channels a head
    cross_attention_dim=1280,
    transformer_layers_per_block=4,
    use_linear_projection=True,
    added_width=2560,  # 1280 pooled + 5 sizes of 256
)

TEXT = sdxl.TEXT[1:]

SCHEDULER = dict(sdxl.SCHEDULER)
