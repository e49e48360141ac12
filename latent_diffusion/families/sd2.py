"""Stable Diffusion 2.x base, 512 px, predicting the noise: values of the published folders.

Reference: huggingface.co/stabilityai/stable-diffusion-2-1-base; text tower: OpenCLIP ViT-H/14 without its last layer,
arXiv:2212.07143.
"""

from dataclasses import replace

from latent_diffusion.families import sd1
from latent_diffusion.models.text_config import TextConfig

__all__ = ["ARCHITECTURE", "AUTOENCODER", "SCHEDULER", "TEXT", "UNET"]

ARCHITECTURE = "stable-diffusion-v2-512"  # in ModelSpec

AUTOENCODER = sd1.AUTOENCODER

UNET = replace(
    sd1.UNET,
    num_attention_heads=(5, 10, 20, 20),  # 64 channels a head
    cross_attention_dim=1024,
    use_linear_projection=True,
)

TEXT = (TextConfig(width=1024, layers=23, heads=16, activation="gelu", pad_token="!"),)

SCHEDULER = dict(sd1.SCHEDULER)
