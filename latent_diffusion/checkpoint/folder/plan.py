"""From what a model is to the model: networks on the meta device first, then filled from wherever their weights lie.

A folder describes its model in JSON files, a single file in its header or by its tensors; both give a `ModelPlan`.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.files.weights import Weights, fill
from latent_diffusion.checkpoint.folder.scheduler_config import read_schedule
from latent_diffusion.checkpoint.folder.text_folder import fill_text_model
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.models.autoencoder import AutoencoderConfig, AutoencoderKL
from latent_diffusion.models.clip_text import CLIPTextModel, CLIPTextModelWithProjection
from latent_diffusion.models.text_encoder import TextEncoder, TextEncoders
from latent_diffusion.models.tokenizer import Tokenizer
from latent_diffusion.models.unet import UNet, UNetConfig

__all__ = ["ChooseDtype", "ModelPlan", "OtherAutoencoder", "Tower", "assemble", "on_meta"]

ChooseDtype = Callable[[int], torch.dtype | None]
"""The dtype for a U-Net of so many weights; None keeps each tensor's own."""


@dataclass(frozen=True)
class Tower:
    """One text encoder to be: its model on the meta device and its tokenizer."""

    part: str  # "text_encoder" or "text_encoder_2"
    model: CLIPTextModel | CLIPTextModelWithProjection
    tokenizer: Tokenizer
    penultimate: bool  # see `TextEncoder`

    def encoder(self, model: CLIPTextModel | CLIPTextModelWithProjection, source: Path) -> TextEncoder:
        """Return the text encoder whose `model` has its weights now, from `source`.

        Raises:
            CheckpointError: the tokenizer is another model's.
        """
        try:
            return TextEncoder(model, self.tokenizer, penultimate=self.penultimate)
        except ConfigError as error:
            raise CheckpointError(f"{source}: {self.part} and its tokenizer do not belong together: {error}") from None


@dataclass(frozen=True)
class OtherAutoencoder:
    """An autoencoder from elsewhere than the model."""

    name: str  # for people
    file: Path  # of its weights
    weights: Callable[[AutoencoderKL], Weights]  # for the network on the meta device


@dataclass(frozen=True)
class ModelPlan:
    """The description of a model, without its weights."""

    unet: UNetConfig
    autoencoder: AutoencoderConfig
    towers: tuple[Tower, ...]
    scheduler: Mapping[str, Any]
    scheduler_place: str  # where the scheduler's values were read, for errors
    name: str
    notes: tuple[str, ...] = ()
    zeros_for_empty_prompt: bool = False
    other_autoencoder: OtherAutoencoder | None = None  # None = the model's own

    def predicting(self, prediction_type: str | None) -> "ModelPlan":
        """Return the plan of a U-Net whose output means `prediction_type`; None changes nothing."""
        if prediction_type is None:
            return self
        changed = replace(self, scheduler={**self.scheduler, "prediction_type": prediction_type})
        return changed.noting(f"prediction: {prediction_type}, from the option prediction_type")

    def noting(self, *notes: str) -> "ModelPlan":
        """Return the plan with more to tell people."""
        return replace(self, notes=(*self.notes, *notes))


def on_meta(kind: Callable[..., nn.Module], *arguments: Any) -> Any:
    """Return a module built without memory for its weights."""
    with torch.device("meta"):
        return kind(*arguments)


def assemble(
    plan: ModelPlan,
    source: Path,
    weights: Callable[[str, nn.Module], Weights],
    dtype: torch.dtype | ChooseDtype | None,
    left_out: Collection[str] = (),
) -> Components:
    """Build the parts and fill them, tensor by tensor; on the CPU, in evaluation mode.

    Args:
        plan: what to build.
        source: the folder or file.
        weights: (part, its network on the meta device) -> weights under that network's names; parts are "unet", "vae",
            "text_encoder", "text_encoder_2".
        dtype: of every part; or what chooses the U-Net's, the others being float32; None keeps each tensor's own.
        left_out: parts that stay on the meta device, without weights.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit; the message names it.
    """
    try:
        schedule, prediction = read_schedule(plan.scheduler)
    except CheckpointError as error:
        raise CheckpointError(f"{plan.scheduler_place}: {error}") from None
    notes, other = list(plan.notes), plan.other_autoencoder

    def filled(part: str, network: Any, kind: torch.dtype | None, fill_in: Callable = fill) -> Any:
        if part in left_out:
            return network
        found = other.weights(network) if part == "vae" and other is not None else weights(part, network)
        notes.extend(found.casts(part, kind))
        return fill_in(network, found, kind)

    unet = on_meta(UNet, plan.unet)
    large, small = _dtypes(dtype, unet)
    unet = filled(
        "unet", unet, large, partial(fill, at_once=large is not None)
    )  # kept in the file's formats, it is read later
    autoencoder = filled("vae", on_meta(AutoencoderKL, plan.autoencoder), small)
    towers = [tower.encoder(filled(tower.part, tower.model, small, fill_text_model), source) for tower in plan.towers]
    components = Components(
        unet,
        autoencoder,
        towers[0] if len(towers) == 1 else TextEncoders(*towers),
        schedule,
        prediction,
        plan.scheduler,
        plan.name,
        notes=tuple(notes),
        zeros_for_empty_prompt=plan.zeros_for_empty_prompt,
        source=source,
        vae=None if other is None else other.name,
        vae_file=None if other is None else other.file,
    )
    components.check(source)
    return components


def _dtypes(asked: torch.dtype | ChooseDtype | None, unet: nn.Module) -> tuple[torch.dtype | None, torch.dtype | None]:
    """Return the dtype of the U-Net, and that of the other parts."""
    if asked is None or isinstance(asked, torch.dtype):
        return asked, asked
    return asked(sum(weight.numel() for weight in unet.parameters())), torch.float32
