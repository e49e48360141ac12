"""Stable Diffusion XL base, 1024 px: values of the published folders.

Reference: Podell et al. 2023, arXiv:2307.01952; huggingface.co/stabilityai/stable-diffusion-xl-base-1.0.
"""

from dataclasses import replace

from latent_diffusion.families import sd1
from latent_diffusion.models.text_config import TextConfig
from latent_diffusion.models.unet import UNetConfig

__all__ = ["ARCHITECTURE", "AUTOENCODER", "SCHEDULER", "TEXT", "UNET", "ZEROS_FOR_EMPTY_PROMPT"]

ARCHITECTURE = "stable-diffusion-xl-v1-base"  # in ModelSpec

AUTOENCODER = replace(sd1.AUTOENCODER, scaling_factor=0.13025, sample_size=1024)

UNET = UNetConfig(
    sample_size=128,
    block_out_channels=(320, 640, 1280),
    layers_per_block=2,
    cross_attention=(False, True, True),
    num_attention_heads=(5, 10, 20),  # 64 channels a head
    cross_attention_dim=2048,  # 768 + 1280
    transformer_layers_per_block=(1, 2, 10),
    use_linear_projection=True,
    added_width=2816,  # 1280 pooled + 6 sizes of 256
)

TEXT = (
    TextConfig(width=768, layers=12, heads=12, penultimate=True),
    TextConfig(width=1280, layers=32, heads=20, activation="gelu", projection=1280, penultimate=True, pad_token="!"),
)

ZEROS_FOR_EMPTY_PROMPT = True

SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
