"""The public face: text to images, and image + mask + text to images.

A pipeline keeps no state between calls: two threads may share one.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.diffusers_folder import load_folder, save_folder
from latent_diffusion.checkpoint.locate import locate_model
from latent_diffusion.data.images import to_pil
from latent_diffusion.diffusion.known import keep_known
from latent_diffusion.errors import CheckpointError, ConfigError, LatentDiffusionWarning
from latent_diffusion.pipeline.inpaint import Canvas, Known, choose_start
from latent_diffusion.pipeline.job import Job
from latent_diffusion.pipeline.prompts import Prompts, read_prompts
from latent_diffusion.pipeline.record import InpaintRecord, Record
from latent_diffusion.pipeline.sampling import OnStep, Sampled, decode, run_sampler
from latent_diffusion.pipeline.seeds import noise_for
from latent_diffusion.pipeline.settings import Defaults, Settings, steps_after_strength
from latent_diffusion.runtime.placement import choose_device, choose_dtype

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

__all__ = ["LatentDiffusionPipeline", "Output"]

Texts = str | Sequence[str] | None
Seeds = int | Sequence[int] | None
Generators = torch.Generator | Sequence[torch.Generator] | None
Source = str | os.PathLike[str] | Image.Image
OutputType = Literal["pil", "np", "pt", "latent"]
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class Output:
    """What a call made: the images in the form asked for, the seed and the full record of each."""

    images: list[Image.Image] | np.ndarray | Tensor
    seeds: list[int]
    records: list[Record]
    stopped: bool = False  # by `on_step`


class LatentDiffusionPipeline:
    """Text encoder, U-Net, autoencoder and noise schedule, put to work."""

    def __init__(
        self, components: Components, *, device: torch.device | str | None = None, dtype: str | torch.dtype = "auto"
    ) -> None:
        """Put the parts on `device`; the U-Net computes in `dtype`, the small parts in float32.

        Raises:
            CheckpointError: a U-Net with more input than latent channels, which wants a picture beside the prompt.
            ConfigError: unknown device or dtype.
        """
        channels, latents = components.unet.config.in_channels, components.autoencoder.config.latent_channels
        if channels != latents:
            raise CheckpointError(
                f"{components.name}: the U-Net has {channels} input channels, the latents {latents}; "
                "inpainting, depth and edit U-Nets are not supported"
            )
        self.components = components
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device, sum(p.numel() for p in components.unet.parameters()))
        self.defaults = Defaults.of(components)
        components.unet.to(device=self.device, dtype=self.dtype).eval()
        components.autoencoder.to(device=self.device, dtype=torch.float32).eval()
        components.text_encoder.to(self.device).eval()

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

    @torch.no_grad()
    def __call__(
        self,
        prompt: Texts = None,
        *,
        negative_prompt: Texts = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        spacing: str | None = None,
        eta: float = 0.0,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        seed: Seeds = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: OutputType = "pil",
        on_step: OnStep | None = None,
    ) -> Output:
        """Draw images from text; every image of the first prompt comes first.

        Args:
            prompt: one text or several.
            negative_prompt: what to move away from: one for all, or one per prompt; None = "".
            height: px, a multiple of 8; None = the model's.
            width: px, a multiple of 8; None = the model's.
            num_images_per_prompt: images of each prompt.
            num_inference_steps: None = the model's choice, as for the next three.
            guidance_scale: 1 = unguided, 0 = the negative prompt alone.
            sampler: "ddpm", "ddim" or "dpmpp_2m".
            spacing: "leading", "linspace", "trailing" or "karras".
            eta: noise that "ddim" adds, 0 .. 1.
            guidance_rescale: 0 .. 1, against overexposure by strong guidance.
            clip_skip: last layers of the text model to leave out, for both prompts (diffusers: for `prompt` only).
            seed: an int gives image k the seed + k; a list has one per image; None draws one and reports it.
            generator: torch generators instead of seeds, as in diffusers.
            latents: initial noise (B, C, h, w) of unit variance.
            prompt_embeds: text states (P, L, D) instead of `prompt`.
            negative_prompt_embeds: text states instead of `negative_prompt`.
            output_type: "pil" list, "np" (B, H, W, 3) in [0, 1], "pt" (B, 3, H, W) in [0, 1], "latent" scaled latents.
            on_step: called with each `Step`; returning False stops, and the last estimate becomes the image.

        Raises:
            ConfigError: an argument that cannot be.
            DivergedError: the network or the decoder made NaN.
        """
        _check_output_type(output_type)
        if latents is not None:
            height, width = self._size_of(latents, height, width)
        settings = Settings.resolve(
            self.components,
            self.defaults,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            sampler=sampler,
            spacing=spacing,
            eta=eta,
            clip_skip=clip_skip,
        )
        prompts = self._read_prompts(
            settings, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, num_images_per_prompt
        )
        job = self._job(settings, prompts, seed, generator, "seed" if latents is None else "latents")
        x, levels = job.initial_noise(latents), settings.levels(self.components)
        sampled = run_sampler(settings.build_sampler(), job.bind(), x, levels, job.noise, on_step)
        images = self._finish(sampled.latents, output_type)
        return Output(images, job.seeds, job.records(sampled, (settings.width, settings.height)), sampled.stopped)

    @torch.no_grad()
    def inpaint(
        self,
        prompt: Texts = None,
        *,
        image: Source,
        mask_image: Source,
        strength: float = 1.0,
        masked_content: str = "original",
        start_from: str | None = None,
        padding_mask_crop: int | None = None,
        feather: int = 2,
        negative_prompt: Texts = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        spacing: str | None = None,
        eta: float = 0.0,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        seed: Seeds = None,
        generator: Generators = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Output:
        """Repaint the white part of a mask; every pixel outside it stays bit for bit what it was.

        A picture larger than the working size is worked on in the mask's box plus padding, shrunk to that size, and
        pasted back at its own resolution; a smaller one is extended for the work. Output has the input's size.

        Args:
            prompt: what the repainted part shows.
            image: a file or PIL picture of any size; EXIF rotation is applied, transparency handed back unchanged.
            mask_image: of the picture's size; grey of 128 or more is repainted.
            strength: share of the steps that are run; 0 returns the input.
            masked_content: what stands in the hole at first: "original", "fill", "noise" or "nothing".
            start_from: "noise" or "noised_image"; None = "noise" for an emptied hole, else "noised_image".
            padding_mask_crop: px in view around the mask's box; None = a quarter of its longer side.
            feather: px over which the old picture fades into the new one, inside the mask.
            negative_prompt: as in `__call__`, as all that follow.
            height: px the model works at; None = the model's.
            width: px the model works at; None = the model's.
            num_images_per_prompt: images of each prompt.
            num_inference_steps: steps before `strength` takes its share.
            guidance_scale: see `__call__`.
            sampler: see `__call__`.
            spacing: see `__call__`.
            eta: see `__call__`.
            guidance_rescale: see `__call__`.
            clip_skip: see `__call__`.
            seed: see `__call__`.
            generator: see `__call__`.
            prompt_embeds: see `__call__`.
            negative_prompt_embeds: see `__call__`.
            on_step: see `__call__`.

        Raises:
            DataError: picture or mask cannot be read, or their sizes differ.
            ConfigError: an argument that cannot be.
            DivergedError: the network or the decoder made NaN.
        """
        settings = Settings.resolve(
            self.components,
            self.defaults,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            sampler=sampler,
            spacing=spacing,
            eta=eta,
            clip_skip=clip_skip,
        )
        run = steps_after_strength(settings.num_inference_steps, strength)
        start = choose_start(start_from, masked_content, strength)
        work = (settings.width, settings.height)
        canvas = Canvas.read(image, mask_image, work=work, padding=padding_mask_crop, feather=feather)
        prompts = self._read_prompts(
            settings, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, num_images_per_prompt
        )
        job = self._job(settings, prompts, seed, generator, "seed")
        if canvas.region is None or not run:
            why = "strength is 0" if canvas.region else "the mask has no white (128 or more)"
            warnings.warn(f"nothing to repaint: {why}; the input comes back as it is", LatentDiffusionWarning, 3)
            sampled, images = Sampled(torch.empty(0), 0, False), [canvas.unchanged() for _ in job.seeds]
        else:
            x, levels = job.initial_noise(), settings.levels(self.components)[-run - 1 :]
            filler = job.noise.draw(x.shape[1:]) if masked_content == "noise" and start != "noise" else None
            known = Known.encode(canvas, self.components.autoencoder, masked_content, filler)
            denoise = keep_known(job.bind(), known.latents, known.mask)
            x = known.start(start, x, levels[0])
            sampled = run_sampler(settings.build_sampler(), denoise, x, levels, job.noise, on_step)
            images = [canvas.paste(painted) for painted in to_pil(decode(self.components.autoencoder, sampled.latents))]
        details = InpaintRecord(
            *canvas.hashes(),
            strength=float(strength),
            masked_content=masked_content,
            start_from=start,
            padding=padding_mask_crop,
            feather=feather,
            box=canvas.region.box if canvas.region and run else None,
            steps_run=sampled.steps,
        )
        return Output(images, job.seeds, job.records(sampled, canvas.picture.size, details), sampled.stopped)

    def save_pretrained(self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> None:
        """Write a diffusers folder that `from_pretrained` and diffusers open; None keeps each tensor's dtype."""
        save_folder(self.components, Path(folder), dtype=dtype)

    def to_diffusers(self) -> "StableDiffusionPipeline":
        """Return a diffusers pipeline that shares these weights: training or moving one changes the other."""
        from latent_diffusion.pipeline.to_diffusers import to_diffusers

        return to_diffusers(self.components)

    def _read_prompts(
        self, settings: Settings, prompt: Texts, negative: Texts, embeds: Tensor | None, away: Tensor | None, count: int
    ) -> Prompts:
        return read_prompts(
            self.components.text_encoder,
            prompt,
            negative,
            embeds,
            away,
            images_per_prompt=count,
            clip_skip=settings.clip_skip,
            guided=settings.guided,
        )

    def _job(self, settings: Settings, prompts: Prompts, seed: Seeds, generator: Generators, initial: str) -> Job:
        noise, seeds = noise_for(seed, generator, len(prompts))
        if generator is not None and initial == "seed":
            initial = "generator"
        return Job(self.components, self.device, self.dtype, settings, prompts, noise, seeds, initial)

    def _size_of(self, latents: Tensor, height: int | None, width: int | None) -> tuple[int, int]:
        if not isinstance(latents, Tensor) or latents.ndim != 4:
            found = tuple(latents.shape) if isinstance(latents, Tensor) else f"a {type(latents).__name__}"
            raise ConfigError(f"latents must be a tensor (images, channels, height, width), not {found}")
        size = tuple(side * self.components.autoencoder.factor for side in latents.shape[-2:])
        if (height or size[0], width or size[1]) != size:
            raise ConfigError(f"latents are for {size[1]}x{size[0]} px; height and width must say so or be None")
        return size[0], size[1]

    def _finish(self, latents: Tensor, output_type: OutputType) -> list[Image.Image] | np.ndarray | Tensor:
        if output_type == "latent":
            return latents
        images = decode(self.components.autoencoder, latents)
        if output_type == "pil":
            return to_pil(images)
        unit = images / 2 + 0.5
        return unit if output_type == "pt" else unit.permute(0, 2, 3, 1).cpu().numpy()


def _check_output_type(output_type: str) -> None:
    if output_type not in OUTPUT_TYPES:
        raise ConfigError(f"unknown output_type {output_type!r}; there are {', '.join(OUTPUT_TYPES)}")
