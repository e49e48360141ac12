"""The output of a call, and its decoding from latents: values that are not finite never become a picture."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latent_diffusion.data.pictures.images import to_pil
from latent_diffusion.errors import ConfigError, DivergedError
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.tiny_autoencoder import TinyAutoencoder
from latent_diffusion.provenance.record import Record

__all__ = [
    "Images",
    "Output",
    "OutputType",
    "Sampled",
    "check_finite",
    "check_output_type",
    "decode",
    "finish",
    "in_form",
]

OutputType = Literal["pil", "np", "pt", "latent"]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
Images = list[Image.Image] | np.ndarray | Tensor
DECODED_AT_ONCE = 8  # images; bounds the memory of decoding a large batch


@dataclass(frozen=True)
class Sampled:
    """Latents (B, C, h, w) float32, scaled, and how many steps made them."""

    latents: Tensor
    steps: int
    stopped: bool  # by `on_step`

    @classmethod
    def nothing(cls) -> "Sampled":
        """Return what a call of no steps draws."""
        return cls(torch.empty(0), 0, False)


@dataclass(frozen=True)
class Output:
    """The output of a call: images in the requested form, with the seed and the record of each."""

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


def decode(autoencoder: AutoencoderKL | TinyAutoencoder, latents: Tensor) -> Tensor:
    """Return images (B, 3, H, W) float32 in [-1, 1] of scaled `latents` (B, C, h, w).

    Raises:
        DivergedError: the decoder made NaN or infinity.
    """
    dtype = next(autoencoder.parameters()).dtype
    parts = [autoencoder.to_images(part.to(dtype)).float() for part in latents.split(DECODED_AT_ONCE)]
    images = torch.cat(parts)
    check_finite(images, "the decoded images")
    return images.clamp(-1, 1)


def check_finite(values: Tensor, what: str) -> None:
    """Raise where a NaN would turn into a black picture.

    Raises:
        DivergedError: `values` (B, ...) holds NaN or infinity; the message names the images.
    """
    bad = (~values.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
    if bad:
        raise DivergedError(
            f"{what} are not finite for image {', '.join(map(str, bad))} of the batch (counted from 0); "
            "use dtype float32; if it was float32, the model's weights are damaged"
        )


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
