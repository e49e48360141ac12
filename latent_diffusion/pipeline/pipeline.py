"""The public face: text to images, and image + mask + text to images.

A pipeline keeps no state between calls: two threads may share one.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.diffusers_folder import load_folder, save_folder
from latent_diffusion.checkpoint.locate import locate_model
from latent_diffusion.pipeline.canvas import Source
from latent_diffusion.pipeline.engine import Engine
from latent_diffusion.pipeline.inpaint import inpaint
from latent_diffusion.pipeline.options import Options, Texts
from latent_diffusion.pipeline.output import Output, OutputType
from latent_diffusion.pipeline.repainting import InpaintOptions
from latent_diffusion.pipeline.settings import Defaults
from latent_diffusion.pipeline.text_to_image import text_to_image

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["LatentDiffusionPipeline", "Output"]


class LatentDiffusionPipeline:
    """Text encoder, U-Net, autoencoder and noise schedule, put to work."""

    def __init__(
        self, components: Components, *, device: torch.device | str | None = None, dtype: str | torch.dtype = "auto"
    ) -> None:
        """Put the parts on `device`; the U-Net computes in `dtype`, the small parts in float32.

        Raises:
            ConfigError: unknown device or dtype.
        """
        self.engine = Engine.build(components, device, dtype)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: str | torch.dtype = "auto",
    ) -> "LatentDiffusionPipeline":
        """Load a bundled model by its name, or a diffusers folder by its path.

        Args:
            name: "emoji" is the bundled model; write "./emoji" for a folder of that name.
            device: None = cuda if there, else cpu.
            dtype: "auto", "float32", "bfloat16", "float16" or a torch dtype; see `runtime.placement`.

        Raises:
            CheckpointError: no such model, or one that is damaged or does not fit.
            ConfigError: unknown device or dtype.
        """
        return cls(load_folder(locate_model(name), dtype=torch.float32), device=device, dtype=dtype)

    @property
    def components(self) -> Components:
        """The parts that the next call uses."""
        return self.engine.components

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return self.engine.device

    @property
    def dtype(self) -> torch.dtype:
        """What the U-Net computes in."""
        return self.engine.dtype

    @property
    def defaults(self) -> Defaults:
        """What the model chooses where a call does not."""
        return self.engine.defaults

    def __call__(
        self,
        prompt: Texts = None,
        *,
        latents: Tensor | None = None,
        output_type: OutputType = "pil",
        **options: Unpack[Options],
    ) -> Output:
        """Draw images from text; every image of the first prompt comes first.

        Args:
            prompt: one text or several.
            latents: initial noise (B, C, h, w) of unit variance.
            output_type: "pil" list, "np" (B, H, W, 3) in [0, 1], "pt" (B, 3, H, W) in [0, 1], "latent" scaled latents.
            **options: see `Options`.

        Raises:
            ConfigError: an argument that cannot be, or an inpainting U-Net, which wants a picture beside the prompt.
            DivergedError: the network or the decoder made NaN.
        """
        return text_to_image(self.engine, prompt, options, latents=latents, output_type=output_type)

    def inpaint(
        self,
        prompt: Texts = None,
        *,
        image: Source,
        mask_image: Source,
        **options: Unpack[InpaintOptions],
    ) -> Output:
        """Repaint the white part of a mask; every pixel outside it stays bit for bit what it was.

        A picture larger than the working size is worked on in the mask's box plus padding, shrunk to that size, and
        pasted back at its own resolution; a smaller one is extended for the work. Output has the input's size. Takes
        U-Nets of text to image and those for inpainting.

        Args:
            prompt: what the repainted part shows.
            image: a file or PIL picture of any size; EXIF rotation is applied, transparency handed back unchanged.
            mask_image: of the picture's size; grey of 128 or more is repainted.
            **options: see `InpaintOptions` and `Options`; `height` and `width` are what the model works at.

        Raises:
            DataError: picture or mask cannot be read, or their sizes differ.
            ConfigError: an argument that cannot be.
            DivergedError: the network or the decoder made NaN.
        """
        return inpaint(self.engine, prompt, options, image=image, mask_image=mask_image)

    def save_pretrained(self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> None:
        """Write a diffusers folder that `from_pretrained` and diffusers open; None keeps each tensor's dtype."""
        save_folder(self.components, Path(folder), dtype=dtype)

    def to_diffusers(self) -> "DiffusionPipeline":
        """Return a diffusers pipeline that shares these weights: training or moving one changes the other."""
        from latent_diffusion.pipeline.to_diffusers import to_diffusers

        return to_diffusers(self.components)
