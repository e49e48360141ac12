"""The parts of one model, as they come from disk and go back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from latent_diffusion.checkpoint.prompt_forms import PromptForms
from latent_diffusion.diffusion.denoiser import Denoiser, Network
from latent_diffusion.diffusion.level import NoiseSchedule
from latent_diffusion.diffusion.prediction import Prediction
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.text_encoder import TextEncoder, TextEncoders
from latent_diffusion.models.unet import UNet

__all__ = ["Applied", "Components", "Overrides"]

LEARNED = ("learned", "learned_range")
"""Values of diffusers' `variance_type` for a U-Net with twice the output channels."""


@dataclass(frozen=True)
class Applied:
    """One adapter that parts of a model were changed by."""

    kind: str  # "lora" or "embedding"
    name: str
    hash: str  # 12 hex digits, as the A1111 web UI has it
    strengths: Mapping[str, float] = field(default_factory=dict)  # of a LoRA, by part: "unet", "text_encoder", ...


@dataclass(frozen=True)
class Overrides:
    """The options of `load_model` that override a model's own files; see `checkpoint.load.Reading`."""

    family: str | None = None
    prediction_type: str | None = None
    averaged: bool = False


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
    adapters: tuple[Applied, ...] = ()  # what has changed them since they were read
    source: Path | None = None  # the folder or file they were read from
    vae: str | None = None  # name of the autoencoder, where it is not the model's own
    vae_file: Path | None = None  # which holds its weights
    overrides: Overrides = Overrides()  # options given when it was loaded
    prompt_forms: PromptForms | None = None  # form of its training captions, if its folder has one
    repaints_by: str | None = None  # name of the adapter that made an inpainting U-Net of a plain one

    @property
    def size_count(self) -> int:
        """How many size numbers the U-Net reads: 6 (SDXL base), 5 (its refiner) or 0."""
        config = self.unet.config
        if config.added_width is None:
            return 0
        return (config.added_width - self.text_encoder.pooled_width) // config.size_width

    @property
    def open_clip(self) -> bool:
        """Whether a text encoder is of OpenCLIP's kind (Stable Diffusion 2, SDXL), not OpenAI's alone."""
        return any(tower.config.hidden_act != "quick_gelu" for tower in self.text_encoder.towers)

    @property
    def plain(self) -> bool:
        """Whether the U-Net reads the noisy latents and nothing beside them."""
        return self.unet.config.in_channels == self.autoencoder.config.latent_channels

    @property
    def for_inpainting(self) -> bool:
        """Whether the U-Net reads a mask and the latents of the masked picture beside the noisy latents."""
        return self.unet.config.in_channels == 2 * self.autoencoder.config.latent_channels + 1

    @property
    def reads_partner(self) -> bool:
        """Whether the U-Net reads the latents of another picture beside the noisy latents."""
        return self.unet.config.in_channels == 2 * self.autoencoder.config.latent_channels

    @property
    def learned_variance(self) -> bool:
        """Whether the U-Net also writes where the variance of each step lies (`diffusion/variance.py`)."""
        return self.unet.config.out_channels == 2 * self.autoencoder.config.latent_channels

    def denoiser(self, unet: Network, dtype: torch.dtype = torch.float32) -> Denoiser:
        """Return the estimator of x0 that `unet`, this model's or a changed one, is with this noise law."""
        return Denoiser(unet, self.schedule, self.prediction, dtype, self.learned_variance, not self.plain)

    def check_unmasked(self) -> None:
        """Refuse a U-Net that reads more than the noisy latents, for the tasks that give it nothing else.

        Raises:
            ConfigError: more input than latent channels, be it by an adapter.
        """
        channels, latents = self.unet.config.in_channels, self.autoencoder.config.latent_channels
        if self.repaints_by is not None:
            raise ConfigError(
                f"the adapter {self.repaints_by!r} is for inpainting: it needs a picture and a mask; use `inpaint`, or "
                "leave it out"
            )
        if not self.plain:
            raise ConfigError(
                f"{self.name}: its U-Net reads {channels} channels, the latents have {latents}: it also needs "
                + (
                    "a picture and a mask; use `inpaint`"
                    if self.for_inpainting
                    else "a picture, which no method of the pipeline supplies; docs/science/flow.md draws with one"
                )
            )

    def check(self, source: Path) -> None:
        """Check that the parts, which come from `source`, belong together.

        Raises:
            CheckpointError: naming the widths that differ.
        """
        unet, latents, text = self.unet.config, self.autoencoder.config.latent_channels, self.text_encoder
        if text.width != unet.cross_attention_dim:
            raise CheckpointError(
                f"{source}: text states have {text.width} channels, "
                f"the U-Net's cross_attention_dim is {unet.cross_attention_dim}"
            )
        if unet.out_channels not in (latents, 2 * latents):
            raise CheckpointError(
                f"{source}: the U-Net has {unet.out_channels} output channels, the autoencoder's latents have {latents}"
            )
        kind = self.scheduler_config.get("variance_type")
        read = kind if self.scheduler_config.get("_class_name") == "DDPMScheduler" else None  # other classes ignore it
        if self.learned_variance != ((kind if self.learned_variance else read) in LEARNED) or kind == "learned":
            raise CheckpointError(
                f"{source}: the U-Net has {unet.out_channels} output channels for latents of {latents}, and "
                f"scheduler_config.json has variance_type {kind!r:.40}; a U-Net with a learned variance has "
                f"{2 * latents} and 'learned_range', any other has {latents} and a fixed variance"
            )
        sizes = (unet.added_width or 0) - text.pooled_width
        if unet.added_width is not None and sizes not in (5 * unet.size_width, 6 * unet.size_width):
            raise CheckpointError(
                f"{source}: the U-Net reads {unet.added_width} channels of pooled text and sizes; the text encoder "
                f"gives {text.pooled_width} and 5 or 6 sizes {unet.size_width} each"
            )
