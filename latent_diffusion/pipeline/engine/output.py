"""What a call of the pipeline returns."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor

from latent_diffusion.data.images import to_pil
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.tiny_autoencoder import TinyAutoencoder
from latent_diffusion.pipeline.engine.sampling import decode
from latent_diffusion.provenance.record import Record

__all__ = ["Images", "Output", "OutputType", "check_output_type", "finish", "in_form"]

OutputType = Literal["pil", "np", "pt", "latent"]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
Images = list[Image.Image] | np.ndarray | Tensor


@dataclass(frozen=True)
class Output:
    """What a call made: the images in the form asked for, the seed and the full record of each."""

    images: Images
    seeds: list[int]
    records: list[Record]
    stopped: bool = False  # by `on_step`


def check_output_type(output_type: str) -> None:
    """Refuse unknown forms before anything is computed.

    Raises:
        ConfigError: none of the four.
    """
    if output_type not in OUTPUT_TYPES:
        raise ConfigError(f"unknown output_type {output_type!r}; there are {', '.join(OUTPUT_TYPES)}")


def finish(autoencoder: AutoencoderKL | TinyAutoencoder, latents: Tensor, output_type: OutputType) -> Images:
    """Return scaled latents (B, C, h, w) as images of `output_type`, or as they are for "latent".

    Raises:
        DivergedError: the decoder made NaN or infinity.
    """
    return latents if output_type == "latent" else in_form(decode(autoencoder, latents), output_type)


def in_form(images: Tensor, output_type: OutputType) -> Images:
    """Return `images` (B, 3, H, W) in [-1, 1] as "pil" list, "np" (B, H, W, 3) or "pt" (B, 3, H, W) in [0, 1]."""
    if output_type == "pil":
        return to_pil(images)
    unit = images / 2 + 0.5
    return unit if output_type == "pt" else unit.permute(0, 2, 3, 1).cpu().numpy()
