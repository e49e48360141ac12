"""Draw sample pictures during training, from the parts alone."""

from typing import Protocol

import torch
from PIL import Image

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.data.images import to_pil
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.runtime.precision import autocast
from latent_diffusion.samplers.dpmpp_2m import DPMpp2M

__all__ = ["draw_sheet"]

COLUMNS = 8


class Wishes(Protocol):
    """What to draw: `SampleConfig`."""

    prompts: list[str]
    steps: int
    guidance_scale: float
    seed: int


@torch.no_grad()
def draw_sheet(parts: Components, wishes: Wishes, size: int, precision: str) -> Image.Image:
    """Return one sheet of size x size px pictures, a prompt each, in rows of eight; prompt k has seed `seed` + k."""
    sampler = DPMpp2M()
    last = parts.schedule.level(parts.schedule.num_train_timesteps - 1)
    spacing = "karras" if last.alpha > 0 else "trailing"
    visited = levels(parts.schedule, spacing, wishes.steps, intervals=sampler.intervals)
    side = size // parts.autoencoder.factor
    device = next(parts.unet.parameters()).device
    training = parts.unet.training
    parts.unet.eval()
    pictures: list[Image.Image] = []
    for start in range(0, len(wishes.prompts), COLUMNS):
        prompts = wishes.prompts[start : start + COLUMNS]
        noise = NoiseSource([(wishes.seed + start + k) % 2**32 for k in range(len(prompts))])
        x = noise.draw((parts.autoencoder.config.latent_channels, side, side)).to(device)
        prompt, empty = parts.text_encoder(prompts), parts.text_encoder([""] * len(prompts))
        with autocast(precision, device):
            denoise = CFG(wishes.guidance_scale).bind(
                Denoiser(parts.unet, parts.schedule, parts.prediction), prompt.to(device), empty.to(device)
            )
            for step in sampler(denoise, x, visited, noise):
                x = step.x
        pictures += to_pil(parts.autoencoder.to_images(x.to(next(parts.autoencoder.parameters()).dtype)))
    parts.unet.train(training)
    return _sheet(pictures, size)


def _sheet(pictures: list[Image.Image], size: int) -> Image.Image:
    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * size, rows * size), "white")
    for k, picture in enumerate(pictures):
        sheet.paste(picture, (k % columns * size, k // columns * size))
    return sheet
