"""The arguments that every drawing method of the pipeline takes, documented and checked in one place."""

import os
from collections.abc import Sequence
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor

from latent_diffusion.diffusion.approximation import Approximation
from latent_diffusion.diffusion.guidance import Guidance
from latent_diffusion.diffusion.level import OnStep
from latent_diffusion.errors import ConfigError
from latent_diffusion.inpainting.fill import MaskedContent
from latent_diffusion.inpainting.masks import MaskMode
from latent_diffusion.inpainting.region import Area
from latent_diffusion.registry import nearest

__all__ = ["Generators", "InpaintOptions", "Options", "Pair", "Refiner", "Seeds", "Texts", "check_names"]

Texts = str | Sequence[str] | None
Pair = tuple[int, int]
Seeds = int | Sequence[int] | None
Generators = torch.Generator | Sequence[torch.Generator] | None


class Refiner(Protocol):
    """A second pipeline, as the option `refiner` takes it."""

    @property
    def engine(self) -> Any:
        """Its `pipeline.engine.engine.Engine`."""
        ...


class Options(TypedDict, total=False):
    """What may be said besides the prompt; a name left out, or None, is the model's or the obvious choice.

    Names are those of diffusers where it has one.
    """

    negative_prompt: Texts
    """What to move away from: one for all, or one per prompt; None = ""."""
    height: int | None
    """px the model works at, a multiple of 8; None = the model's."""
    width: int | None
    """px the model works at, a multiple of 8; None = the model's."""
    num_images_per_prompt: int
    """Images of each prompt; every image of the first prompt comes first. Default 1."""
    num_inference_steps: int | None
    """Steps from noise to picture; None = the model's."""
    guidance_scale: float | None
    """1 = unguided, 0 = the negative prompt alone; None = the model's."""
    guidance_rescale: float
    """0 .. 1, against overexposure by strong guidance. Default 0."""
    guidance: Guidance | str | Sequence[str] | None
    """How to guide: names such as "apg" or "pag:scale=3,stop=0.6", several at once, or an object; None = "cfg"."""
    guidance_interval: tuple[float, float] | None
    """Shares of the steps between which guidance is on, such as (0.1, 0.8); None = always."""
    approximate: Approximation | str | Sequence[Approximation | str] | None
    """What to compute less of: names such as "deepcache:interval=3" or "tome", several at once; None = nothing."""
    guidance_slicing: bool
    """Run the U-Net on one row after another: the least memory, the most time. Default False."""
    sampler: str | None
    """Name of a file of `samplers`, with fields as in "restart:repeats=2", or another program's; None = the model's."""
    spacing: str | None
    """Which noise levels are visited; None = what the sampler's name says ("DPM++ 2M Karras"), or the model's."""
    spacing_rho: float | None
    """Exponent of spacing "karras" (7) or "polyexponential" (1); None = these."""
    discard_next_to_last: bool
    """Divide the path into one step more and leave out the level before the last. Default False."""
    timesteps: Sequence[float] | None
    """Instead of steps and spacing: the times to visit, from T - 1 or less falling to 0 or more."""
    sigmas: Sequence[float] | None
    """The same by noise level sigma / alpha (by sigma for a rectified flow); a last 0 may be left out."""
    eta: float | None
    """Share of the noise that a sampler adds, 0 .. 1; None = its own: 0 for "ddim", 1 for most others."""
    clip_skip: int | None
    """Last layers of the text model to leave out, for both prompts (diffusers: for `prompt` only)."""
    emphasis: str | None
    """How weights as in "(red:1.3)" count: "a1111" (None), "no-norm", "comfy", or "none": brackets are text."""
    rewrite: bool | None
    """Whether a plain prompt is read in the form of the model's captions, see `prompts.rewrite`; None = where
    the model's folder says what that is and no adapter has changed the model."""
    long_prompt: str | None
    """Prompts of more than 75 tokens: "chunk" reads all, "truncate" the first 75, "error" refuses. None = "chunk"."""
    lora_folder: str | os.PathLike[str] | None
    """Where files of `<lora:name:weight>` in prompts are; None = only loaded adapters can be named."""
    seed: Seeds
    """An int gives image k the seed + k; a list has one per image; None draws one and reports it."""
    generator: Generators
    """torch generators instead of seeds, as in diffusers."""
    variation_seed: Seeds
    """Other seeds that the noise leans towards, counted as `seed`, which then is that of all images."""
    variation_strength: float
    """Share of the way from the noise of `seed` to that of `variation_seed`, 0 .. 1. Default 0."""
    prompt_embeds: Tensor | None
    """Text states (P, L, D) instead of `prompt`."""
    negative_prompt_embeds: Tensor | None
    """Text states instead of `negative_prompt`."""
    prompt_2: Texts
    """SDXL: what the second text encoder reads; None = `prompt`."""
    negative_prompt_2: Texts
    """SDXL: what the second text encoder reads; None = `negative_prompt`."""
    pooled_prompt_embeds: Tensor | None
    """SDXL: the pooled vector (P, W) that belongs to `prompt_embeds`."""
    negative_pooled_prompt_embeds: Tensor | None
    """SDXL: the pooled vector that belongs to `negative_prompt_embeds`."""
    original_size: Pair | None
    """SDXL: height and width in px that the picture is said to have had before scaling; None = the picture's."""
    crops_coords_top_left: Pair | None
    """SDXL: top and left px at which it is said to have been cropped; None = (0, 0), nothing cut off."""
    target_size: Pair | None
    """SDXL base: height and width in px that the picture is said to have; None = the picture's."""
    negative_original_size: Pair | None
    """The same for the negative prompt; None = as for the prompt."""
    negative_crops_coords_top_left: Pair | None
    """The same for the negative prompt; None = as for the prompt."""
    negative_target_size: Pair | None
    """The same for the negative prompt; None = as for the prompt."""
    aesthetic_score: float | None
    """SDXL refiner: 1 .. 10; None = 6."""
    negative_aesthetic_score: float | None
    """SDXL refiner, for the negative prompt; None = 2.5."""
    refiner: "Refiner | None"
    """A second model of the same latents that takes over for the end of the path; it reads the same prompts."""
    refiner_switch: float | None
    """Share of the path, in time, after which it does; None = 0.8."""
    on_step: OnStep | None
    """Called with each `Step`; returning False stops, and the last estimate becomes the image."""


class InpaintOptions(Options, total=False):
    """What may be said of a repainting besides `Options`; `height` and `width` are what the model works at."""

    strength: float
    """Share of the steps that are run; 0 returns the input. Default 1."""
    exact_steps: bool
    """Whether `num_inference_steps` are run at any strength, being the end of a finer path. Default False."""
    masked_content: MaskedContent
    """What stands in the hole at first: "original", "fill", "noise" or "nothing". Default "original"."""
    start_from: str | None
    """"noise" or "noised_image"; None = "noise" for an emptied hole at strength 1, else "noised_image"."""
    mask_mode: MaskMode
    """"binary": grey of 128 or more is repainted; "soft": grey is the strength of each pixel. Default "binary"."""
    mask_grow: int
    """px by which the mask is made larger; what it then covers is repainted. Default 0."""
    mask_blur: int
    """px over which a soft mask rises from its edge inwards. Default 0."""
    feather: int
    """px over which the old picture fades into the new one, inside the mask. Default 2."""
    inpaint_area: Area
    """What the model sees: "auto", "masked" or "whole"; see `inpainting.region`. Default "auto"."""
    padding_mask_crop: int | None
    """px in view around the mask's box; None = a quarter of its longer side, 32 for the area "masked"."""
    resample: int
    """How often each stretch of steps is walked again, so that old and new agree better. Default 0."""
    jump_length: int
    """Steps of such a stretch. Default 10."""
    color_match: bool
    """Whether the new part gets the colours that its surroundings have lost in the model. Default False."""
    latent_blend: bool
    """False leaves keeping the rest, in latent space, to an inpainting U-Net. Default True."""


def check_names(options: Options) -> None:
    """Refuse names that no drawing method takes.

    Raises:
        ConfigError: naming the unknown one and the nearest known.
    """
    known = tuple(Options.__annotations__)
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown argument {name!r}{nearest(name, known)}; there are {', '.join(known)}")
