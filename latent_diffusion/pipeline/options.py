"""The arguments that every drawing method of the pipeline takes, documented and checked in one place."""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from latent_diffusion.errors import ConfigError
from latent_diffusion.pipeline.sampling import OnStep
from latent_diffusion.registry import nearest

__all__ = ["Generators", "Options", "Seeds", "Texts", "check_names"]

Texts = str | Sequence[str] | None
Seeds = int | Sequence[int] | None
Generators = torch.Generator | Sequence[torch.Generator] | None


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
    sampler: str | None
    """Name of a file of `samplers`; None = the model's."""
    spacing: str | None
    """Which noise levels are visited; None = the model's."""
    eta: float
    """Noise that "ddim" adds, 0 .. 1. Default 0."""
    clip_skip: int | None
    """Last layers of the text model to leave out, for both prompts (diffusers: for `prompt` only)."""
    seed: Seeds
    """An int gives image k the seed + k; a list has one per image; None draws one and reports it."""
    generator: Generators
    """torch generators instead of seeds, as in diffusers."""
    prompt_embeds: Tensor | None
    """Text states (P, L, D) instead of `prompt`."""
    negative_prompt_embeds: Tensor | None
    """Text states instead of `negative_prompt`."""
    on_step: OnStep | None
    """Called with each `Step`; returning False stops, and the last estimate becomes the image."""


def check_names(options: Options) -> None:
    """Refuse names that no drawing method takes.

    Raises:
        ConfigError: naming the unknown one and the nearest known.
    """
    known = tuple(Options.__annotations__)
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown argument {name!r}{nearest(name, known)}; there are {', '.join(known)}")
