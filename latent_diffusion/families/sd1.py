"""Stable Diffusion 1.x, 512 px: values of the published folders.

Reference: Rombach et al. 2022, arXiv:2112.10752; huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5.
"""

from latent_diffusion.models.autoencoder import AutoencoderConfig
from latent_diffusion.models.text_config import TextConfig
from latent_diffusion.models.unet import UNetConfig

__all__ = ["ARCHITECTURE", "AUTOENCODER", "SCHEDULER", "TEXT", "UNET"]

ARCHITECTURE = "stable-diffusion-v1"  # in ModelSpec

AUTOENCODER = AutoencoderConfig(
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    latent_channels=4,
    scaling_factor=0.18215,
    sample_size=512,
)

UNET = UNetConfig(
    sample_size=64,
    block_out_channels=(320, 640, 1280, 1280),
    layers_per_block=2,
    cross_attention=(True, True, True, False),
    num_attention_heads=(8, 8, 8, 8),
    cross_attention_dim=768,
)

TEXT = (TextConfig(width=768, layers=12, heads=12),)  # OpenAI's CLIP ViT-L/14

SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
