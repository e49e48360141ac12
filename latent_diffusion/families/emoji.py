"""The bundled model: emoji and pictograms, 64 px, small enough to train and to draw on two CPU cores."""

from latent_diffusion.models.autoencoder import AutoencoderConfig
from latent_diffusion.models.unet import UNetConfig

__all__ = ["AUTOENCODER", "SCHEDULER", "UNET"]

AUTOENCODER = AutoencoderConfig(
    block_out_channels=(32, 64, 128),  # 4 px a latent cell: 64 px -> 16 x 16
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=8,
    scaling_factor=1.0,  # the latent's statistics are folded into the 1x1 convolutions
    sample_size=64,
)

UNET = UNetConfig(
    sample_size=16,
    block_out_channels=(64, 128, 256),
    layers_per_block=1,
    cross_attention=(True, True, False),  # none at 4 x 4 but in the middle: there it costs weights, not time
    num_attention_heads=(1, 2, 4),  # 64 channels a head
    cross_attention_dim=256,
)

SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "_guidance_scale": 1.5,  # this and the steps: our own fields, passed over by other tools
    "_num_inference_steps": 15,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "steps_offset": 1,
    "timestep_spacing": "trailing",
    "variance_type": "fixed_small",
}
