"""Pictures of unfinished latents, cheap enough for every step.

| name | what it is | cost a step |
|---|---|---|
| `linear` | one matrix from latent channels to RGB, fitted to the model's own decoder; one colour a cell | none |
| `taesd` | a tiny autoencoder from a folder; full size | a twentieth of a decode |
"""

import os
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from latent_diffusion.checkpoint.folder.tiny_folder import open_tiny
from latent_diffusion.data.pictures.images import to_pil
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.tiny_autoencoder import TinyAutoencoder
from latent_diffusion.registry import nearest

__all__ = ["PREVIEWS", "LinearPreview", "Preview", "TinyPreview", "open_preview"]

PREVIEWS = ("linear", "taesd")
SIDE = 16  # cells a side of the pictures that the linear preview is fitted on
GRAINS = (1, 2, 4, 8, 16)  # cells a side of the patches of one colour
EACH = 2  # pictures of each grain


class Preview(Protocol):
    """A function from scaled latents (B, C, h, w), such as `Step.x0`, to B pictures of the final size."""

    def __call__(self, latents: Tensor) -> list[Image.Image]:
        """Return a picture of each latent."""
        ...


@dataclass(frozen=True)
class LinearPreview:
    """rgb = weight @ latent + bias, cell by cell."""

    weight: Tensor  # (3, C) float32
    bias: Tensor  # (3,)
    factor: int  # px a cell

    @classmethod
    def fit(cls, autoencoder: AutoencoderKL) -> "LinearPreview":
        """Fit the map by least squares to what the decoder makes of each cell, averaged over its pixels.

        The latents are those that the encoder gives patches of random colours, of several sizes: any picture is made of
        such, and of no other latents (noise, say) need the preview be right.
        """
        generator, factor = torch.Generator("cpu").manual_seed(0), autoencoder.factor
        parameter = next(autoencoder.parameters())
        parts = []
        for grain in GRAINS:
            images = _patches(grain, factor, generator).to(parameter)
            latents = autoencoder.to_latents(images)
            parts.append([x.float().cpu() for x in (latents, autoencoder.to_images(latents).clamp(-1, 1))])
        latents, images = (torch.cat(side) for side in zip(*parts, strict=True))
        colours, channels = F.avg_pool2d(images.float(), factor), latents.shape[1]
        cells = latents.permute(0, 2, 3, 1).reshape(-1, channels).double()
        design = torch.cat([cells, torch.ones_like(cells[:, :1])], dim=1)
        target = colours.permute(0, 2, 3, 1).reshape(-1, colours.shape[1]).double()
        solution = torch.linalg.lstsq(design, target).solution.float()  # (C + 1, 3)
        return cls(solution[:-1].T.contiguous(), solution[-1].contiguous(), factor)

    def __call__(self, latents: Tensor) -> list[Image.Image]:
        """Return a picture of each latent (B, C, h, w)."""
        colours = torch.einsum("rc,bchw->brhw", self.weight, latents.float().cpu()) + self.bias[:, None, None]
        size = (latents.shape[-1] * self.factor, latents.shape[-2] * self.factor)
        return [picture.resize(size, Image.Resampling.BICUBIC) for picture in to_pil(colours.clamp(-1, 1))]


@dataclass(frozen=True)
class TinyPreview:
    """The tiny autoencoder's decoder."""

    model: TinyAutoencoder

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> list[Image.Image]:
        """Return a picture of each latent (B, C, h, w)."""
        parameter = next(self.model.parameters())
        return to_pil(self.model.to_images(latents.to(parameter)).clamp(-1, 1))


@torch.no_grad()
def open_preview(
    name: str, autoencoder: AutoencoderKL, device: torch.device, folder: str | os.PathLike[str] | None
) -> Preview:
    """Return a preview by its name.

    Args:
        name: "linear" or "taesd".
        autoencoder: of the model whose latents are shown.
        device: where a network computes.
        folder: of the tiny autoencoder, for "taesd".

    Raises:
        ConfigError: no such name, a folder missing or too many, or a tiny autoencoder for other latents.
        CheckpointError: the folder's files are missing or damaged.
    """
    if name not in PREVIEWS:
        raise ConfigError(f"unknown preview {name!r}; there are {', '.join(PREVIEWS)}{nearest(str(name), PREVIEWS)}")
    if (name == "taesd") != (folder is not None):
        raise ConfigError(
            "preview 'taesd' needs the folder of a tiny autoencoder"
            if name == "taesd"
            else f"preview {name!r} needs no folder, but {str(folder)!r} was given"
        )
    if folder is None:
        return LinearPreview.fit(autoencoder)
    return TinyPreview(open_tiny(folder, autoencoder).to(device))


def _patches(grain: int, factor: int, generator: torch.Generator) -> Tensor:
    """Return pictures (EACH, 3, H, W) in [-1, 1], `SIDE` cells a side, of patches `grain` cells wide."""
    coarse = torch.rand(EACH, 3, SIDE // grain, SIDE // grain, generator=generator, dtype=torch.float32) * 2 - 1
    return F.interpolate(coarse, scale_factor=grain * factor, mode="nearest")
