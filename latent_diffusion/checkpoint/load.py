"""A model by its name, whatever it is: bundled, a diffusers folder, or a single file."""

import os
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack

import torch

from latent_diffusion.checkpoint.components import Components, Overrides
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder
from latent_diffusion.checkpoint.folder.plan import ChooseDtype
from latent_diffusion.checkpoint.locate import locate_model
from latent_diffusion.checkpoint.single.autoencoder_file import with_autoencoder
from latent_diffusion.checkpoint.single.single_file import load_single_file
from latent_diffusion.errors import ConfigError

__all__ = ["Reading", "load_model"]


class Reading(TypedDict, total=False):
    """Facts that a model's files do not state, or state wrongly."""

    family: str | None
    """Of a single file: "sd1", "sd2_v", "sdxl_inpaint", ... (a file of `families/`); None = read from its tensors."""
    prediction_type: str | None
    """Meaning of the U-Net's output: "epsilon", "v_prediction", "sample"; None = as the model's files state."""
    vae: str | os.PathLike[str] | None
    """Autoencoder to use in place of the model's own, or where a single file has none: a folder or a file."""
    averaged: bool
    """Of a single file: take the U-Net's moving average (EMA) where it lies beside the plain weights."""
    left_out: Collection[str]
    """Parts that stay on the meta device, without weights: "unet", "vae", "text_encoder", "text_encoder_2"."""


def load_model(
    name: str | os.PathLike[str], dtype: torch.dtype | ChooseDtype | None = torch.float32, **reading: Unpack[Reading]
) -> Components:
    """Read a model; its networks are on the CPU, in evaluation mode. Nothing is looked up elsewhere.

    Args:
        name: a bundled name, a diffusers folder, a `.safetensors` or an old `.ckpt`.
        dtype: of every part; or what chooses the U-Net's, the others being float32; None keeps each tensor's own.
        **reading: see `Reading`.

    Raises:
        CheckpointError: no such model, or one that is damaged or does not fit.
        ConfigError: an option for single files, given for a folder.
    """
    place = locate_model(name)
    vae = reading.get("vae")
    with_vae = None if vae is None else partial(with_autoencoder, place=Path(vae))
    family, prediction_type, averaged = (
        reading.get("family"),
        reading.get("prediction_type"),
        reading.get("averaged", False),
    )
    left_out = reading.get("left_out", ())
    if place.is_file():
        components = load_single_file(
            place,
            dtype,
            family=family,
            prediction_type=prediction_type,
            averaged=averaged,
            with_vae=with_vae,
            left_out=left_out,
        )
        return replace(components, overrides=Overrides(family, prediction_type, averaged))
    for option, value in (("family", family), ("averaged", averaged)):
        if value:
            raise ConfigError(f"{option}={value!r} is for single files; {str(name)!r} is a folder")
    components = load_folder(place, dtype, prediction_type=prediction_type, with_vae=with_vae, left_out=left_out)
    return replace(components, overrides=Overrides(None, prediction_type))
