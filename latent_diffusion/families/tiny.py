"""Every part as small as it goes, for tests: 32 px pictures, 8 x 8 latents."""

from latent_diffusion.models.autoencoder import AutoencoderConfig
from latent_diffusion.models.unet import UNetConfig

__all__ = ["AUTOENCODER", "SCHEDULER", "UNET"]

AUTOENCODER = AutoencoderConfig(
    block_out_channels=(8, 16, 16),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=8,
    sample_size=32,
)

UNET = UNetConfig(
    sample_size=8,
    block_out_channels=(16, 32),
    layers_per_block=1,
    cross_attention=(True, True),
    num_attention_heads=(2, 2),
    cross_attention_dim=32,
    norm_num_groups=8,
)

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
