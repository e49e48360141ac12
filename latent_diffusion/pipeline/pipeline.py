"""The public interface: text to images, and image + mask + text to images.

A pipeline keeps no state between calls: two threads may share one.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.folder.diffusers_folder import save_folder
from latent_diffusion.checkpoint.load import load_model
from latent_diffusion.checkpoint.single.single_file import save_single_file
from latent_diffusion.data.pictures.images import ImageSource
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.options.call import Options, Texts
from latent_diffusion.options.model import LoadOptions, MachineOptions, ReadingOptions
from latent_diffusion.options.option import check_names, checked
from latent_diffusion.options.tasks import HiresOptions, ImageToImageOptions, InpaintOptions, OutpaintOptions
from latent_diffusion.pipeline.adapting import Adapting
from latent_diffusion.pipeline.call.settings import Defaults
from latent_diffusion.pipeline.engine.engine import Engine
from latent_diffusion.pipeline.engine.machine import unet_dtype
from latent_diffusion.pipeline.engine.output import Output, OutputType
from latent_diffusion.pipeline.preview import Preview, open_preview
from latent_diffusion.pipeline.tasks.hires import hires
from latent_diffusion.pipeline.tasks.image_to_image import image_to_image
from latent_diffusion.pipeline.tasks.inpaint import inpaint
from latent_diffusion.pipeline.tasks.interpolate import interpolate
from latent_diffusion.pipeline.tasks.outpaint import outpaint
from latent_diffusion.pipeline.tasks.text_to_image import text_to_image
from latent_diffusion.pipeline.token_report import TokenReport, report_tokens
from latent_diffusion.runtime.undisturbed import undisturbed

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["LatentDiffusionPipeline", "Output"]


class LatentDiffusionPipeline(Adapting):
    """Text encoder, U-Net, autoencoder and noise schedule, with the methods that draw."""

    @undisturbed()
    def __init__(self, components: Components, **machine: Unpack[MachineOptions]) -> None:
        """Put the parts to work as `machine` says, see `MachineOptions`. Do not train them while it draws.

        Raises:
            ConfigError: an unknown name or value.
            ResourceError: a device or an attention kernel that is not available.
        """
        self.engine = Engine.build(components, machine)

    @classmethod
    @undisturbed()
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        **loading: Unpack[LoadOptions],
    ) -> "LatentDiffusionPipeline":
        """Load a bundled model by its name, or a diffusers folder or a single file by its path.

        Args:
            name: "emoji" is the bundled model; write "./emoji" for a folder of that name. Single files are CompVis and
                A1111 `.safetensors`, and old `.ckpt`; no code in them is run.
            **loading: device, number formats, and what a single file does not state; see `LoadOptions`.

        Raises:
            CheckpointError: no such model, or one that is damaged or does not fit.
            ConfigError: an unknown name or value.
            ResourceError: a device or an attention kernel that is not available.
        """
        check_names(LoadOptions, loading)
        reading, machine = checked(ReadingOptions).read(loading)
        components = load_model(
            name,
            unet_dtype(machine),
            family=reading.family,
            prediction_type=reading.prediction_type,
            averaged=reading.averaged,
            vae=reading.vae,
        )
        pipe = cls.__new__(cls)
        pipe.engine = Engine.build(components, machine, keep=False)
        return pipe

    @property
    def components(self) -> Components:
        """The parts that the next call uses.

        On CPUs most weights of U-Net and autoencoder are packed: they are in `state_dict()`, but no parameters until
        `.train()` or `.to()` unpacks them. `fast=False` leaves them as they are.
        """
        return self.engine.components

    @property
    def device(self) -> torch.device:
        """Device of the parts."""
        return self.engine.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format in which the U-Net computes."""
        return self.engine.dtype

    @property
    def denoiser(self) -> Denoiser:
        """The U-Net as an estimator of the clean latents; one pipeline's may guide another (`Autoguidance`)."""
        return self.engine.denoiser()

    @property
    def attention(self) -> str:
        """Name of the U-Net's attention kernel; for "auto" also the kernel that was chosen."""
        return self.engine.machine.kernel

    @property
    def defaults(self) -> Defaults:
        """The model's defaults for options that a call leaves out."""
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
            ConfigError: an argument that cannot be, or an inpainting U-Net, which needs a picture.
            DivergedError: the network or the decoder made NaN.
        """
        return text_to_image(self.engine, prompt, options, latents=latents, output_type=output_type)

    def inpaint(
        self,
        prompt: Texts = None,
        *,
        image: ImageSource,
        mask_image: ImageSource | None = None,
        **options: Unpack[InpaintOptions],
    ) -> Output:
        """Repaint the white part of a mask; every pixel outside it is unchanged, bit for bit.

        A picture larger than the working size is worked on in the mask's box plus padding, shrunk to that size, and
        pasted back at its own resolution; a smaller one is extended for the work. Output has the input's size. Takes
        U-Nets of text to image and those for inpainting.

        Args:
            prompt: what the repainted part shows.
            image: a file or PIL picture of any size; EXIF rotation is applied, transparency is returned unchanged.
            mask_image: of the picture's size; grey of 128 or more is repainted. None: the transparent parts of the
                picture itself, with `mask_channel` "alpha"; they are opaque in the result.
            **options: see `InpaintOptions` and `Options`; `height` and `width` are what the model works at.

        Raises:
            DataError: picture or mask cannot be read, or their sizes differ.
            ConfigError: an argument that cannot be.
            DivergedError: the network or the decoder made NaN.
        """
        return inpaint(self.engine, prompt, options, image=image, mask_image=mask_image)

    def outpaint(
        self,
        prompt: Texts = None,
        *,
        image: ImageSource,
        **options: Unpack[OutpaintOptions],
    ) -> Output:
        """Draw beyond the edges of a picture; every pixel of it is unchanged, bit for bit.

        Args:
            prompt: what the larger picture shows.
            image: a file or PIL picture of any size.
            **options: see `OutpaintOptions`, above all `left`, `right`, `top` and `bottom`, in px; the default of
                `masked_content` is "fill" here.

        Raises:
            DataError: the picture cannot be read.
            ConfigError: nothing to add, or an argument that cannot be.
            DivergedError: the network or the decoder made NaN.
        """
        return outpaint(self.engine, prompt, options, image=image)

    def image_to_image(
        self,
        prompt: Texts = None,
        *,
        image: ImageSource,
        output_type: OutputType = "pil",
        **options: Unpack[ImageToImageOptions],
    ) -> Output:
        """Redraw a picture with a prompt; `strength` is the share of the steps that are run.

        Args:
            prompt: what the new picture shows.
            image: a file or PIL picture; EXIF rotation is applied, transparent parts become white.
            output_type: as for the call.
            **options: see `ImageToImageOptions`, above all `strength`.

        Raises:
            DataError: the picture cannot be read.
            ConfigError: an argument that cannot be, or a strength of less than one step.
            DivergedError: the network or the decoder made NaN.
        """
        return image_to_image(
            self.engine,
            prompt,
            options,
            image=image,
            output_type=output_type,
        )

    def hires(
        self,
        prompt: Texts = None,
        *,
        output_type: OutputType = "pil",
        **options: Unpack[HiresOptions],
    ) -> Output:
        """Draw images from text in two passes: at the model's size, then enlarged and drawn on.

        Args:
            prompt: one text or several.
            output_type: as for the call.
            **options: see `HiresOptions`, above all `scale`; `height` and `width` are those of the first pass.

        Raises:
            ConfigError: an argument that cannot be.
            DivergedError: the network or the decoder made NaN.
        """
        return hires(self.engine, prompt, options, output_type=output_type)

    def interpolate(
        self,
        prompt: str | Sequence[str],
        *,
        frames: int = 8,
        output_type: OutputType = "pil",
        **options: Unpack[Options],
    ) -> Output:
        """Draw the frames between prompts, between seeds, or both; the first and the last equal the key pictures.

        Args:
            prompt: one for all, or one a key.
            frames: number of images, both ends included.
            output_type: as for the call.
            **options: see `Options`; `seed` is one for all, or a list with one a key.

        Raises:
            ConfigError: fewer than two keys, or an argument that cannot be.
            DivergedError: the network or the decoder made NaN.
        """
        return interpolate(self.engine, prompt, options, frames=frames, output_type=output_type)

    @undisturbed()
    def preview(self, name: str = "linear", folder: str | os.PathLike[str] | None = None) -> Preview:
        """Return a function that makes pictures of unfinished latents, such as `step.x0` in `on_step`.

        Args:
            name: "linear", fitted to this model's decoder now (seconds for a large one), or "taesd".
            folder: of the tiny autoencoder, for "taesd".

        Raises:
            ConfigError: no such name, or a folder missing or too many.
            CheckpointError: the folder's files are missing or damaged.
        """
        return open_preview(name, self.components.autoencoder, self.device, folder)

    @undisturbed()
    def tokens(
        self,
        prompt: str,
        *,
        num_inference_steps: int | None = None,
        emphasis: str | None = None,
        rewrite: bool | None = None,
    ) -> TokenReport:
        """Return how a prompt is read: tokens and weights by chunk, terms, and what changes at which step.

        Raises:
            ConfigError: what the prompt language cannot read, or an argument that cannot be.
        """
        asked: Any = {"num_inference_steps": num_inference_steps, "emphasis": emphasis, "rewrite": rewrite}
        return report_tokens(self.engine, prompt, asked)

    @undisturbed()
    def save_pretrained(self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> None:
        """Write a diffusers folder that `from_pretrained` and diffusers open; None keeps each tensor's dtype.

        Fused adapters are saved; a warning names the others.
        """
        save_folder(self.engine.saved(), Path(folder), dtype=dtype)

    @undisturbed()
    def save_single_file(self, file: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> None:
        """Write one `.safetensors` in the layout of CompVis and A1111.

        Fused adapters are saved; a warning names the others.
        """
        save_single_file(self.engine.saved(), Path(file), dtype=dtype)

    @undisturbed()
    def to_diffusers(self) -> "DiffusionPipeline":
        """Return a diffusers pipeline that shares these weights: training or moving one changes the other.

        From then on this pipeline draws without packed weights, which is slower.
        """
        from latent_diffusion.checkpoint.to_diffusers import to_diffusers

        self._replace(Engine.plain)
        return to_diffusers(self.components)
