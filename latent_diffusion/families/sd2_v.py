"""Stable Diffusion 2.x, 768 px, predicting v: values of the published folders.

Reference: huggingface.co/stabilityai/stable-diffusion-2-1; v: Salimans & Ho 2022, arXiv:2202.00512, section 4.
"""

from dataclasses import replace

from latent_diffusion.families import sd2

__all__ = ["ARCHITECTURE", "AUTOENCODER", "LOOKS_LIKE", "SCHEDULER", "TEXT", "UNET"]

ARCHITECTURE = "stable-diffusion-v2-768-v"  # in ModelSpec

LOOKS_LIKE = "sd2"  # the same networks: its files differ in the prediction type

AUTOENCODER = replace(sd2.AUTOENCODER, sample_size=768)

UNET = replace(sd2.UNET, sample_size=96, upcast_attention=True)

TEXT = sd2.TEXT

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
