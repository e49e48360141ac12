"""The parts of one model, as they come from disk and go back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latent_diffusion.diffusion.level import NoiseSchedule
from latent_diffusion.diffusion.prediction import Prediction
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.text_encoder import TextEncoder, TextEncoders
from latent_diffusion.models.unet import UNet

__all__ = ["Components"]


@dataclass(frozen=True)
class Components:
    """Everything that makes pictures out of prompts."""

    unet: UNet
    autoencoder: AutoencoderKL
    text_encoder: TextEncoder | TextEncoders  # one tower, or SDXL base's two; `.towers` has them in order
    schedule: NoiseSchedule  # the noise law it was trained with
    prediction: Prediction  # what the U-Net's output means
    scheduler_config: Mapping[str, Any]  # the folder's default sampler, with diffusers' field names
    name: str  # for people: the folder's name
    notes: tuple[str, ...] = ()  # what reading it had to change or leave out, such as casts
    zeros_for_empty_prompt: bool = False  # an empty negative prompt is zeros, not the states of "" (SDXL base)

    @property
    def size_count(self) -> int:
        """How many size numbers the U-Net is told: 6 (SDXL base), 5 (its refiner) or 0."""
        config = self.unet.config
        if config.added_width is None:
            return 0
        return (config.added_width - self.text_encoder.pooled_width) // config.size_width
