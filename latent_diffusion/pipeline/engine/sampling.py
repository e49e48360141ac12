"""From noise to latents to images: the loop, and the checks that no broken number becomes a picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latent_diffusion.diffusion.level import Denoise, Level, OnStep, Sampler
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.errors import DivergedError
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.tiny_autoencoder import TinyAutoencoder
from latent_diffusion.runtime.cuda.device_noise import on_device

__all__ = ["Sampled", "decode", "run_sampler"]

DECODED_AT_ONCE = 8  # images; bounds the memory of decoding a large batch


@dataclass(frozen=True)
class Sampled:
    """Latents (B, C, h, w) float32, scaled, and how many steps made them."""

    latents: Tensor
    steps: int
    stopped: bool


def run_sampler(
    sampler: Sampler, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource, on_step: OnStep | None
) -> Sampled:
    """Run every step, or until `on_step` returns False; then the latents are the last estimate of x0.

    Raises:
        DivergedError: the latents became NaN or infinite.
    """
    done, latents, stopped = 0, x, False
    for step in sampler(denoise, x, levels, on_device(noise, x.device)):
        done, latents = done + 1, step.x
        if on_step is not None and on_step(step) is False:
            latents, stopped = step.x0, True
            break
    check_finite(latents, f"the latents after {done} steps")
    return Sampled(latents, done, stopped)


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
            "use dtype float32 if it was another, else the model's weights are broken"
        )
