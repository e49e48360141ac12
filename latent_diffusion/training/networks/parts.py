"""The model a U-Net is trained in: loaded whole, or a new U-Net beside a trained autoencoder and text encoder."""

import importlib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn

from latent_diffusion.adapters.mask_channels import with_mask_channels
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.folder.default_sampler import unread
from latent_diffusion.checkpoint.folder.diffusers_folder import load_autoencoder
from latent_diffusion.checkpoint.folder.scheduler_config import read_schedule
from latent_diffusion.checkpoint.folder.text_folder import load_text_encoder
from latent_diffusion.checkpoint.folder.trained_times import without_times
from latent_diffusion.checkpoint.load import load_model
from latent_diffusion.config import Section
from latent_diffusion.data.batches.folder import DataConfig, ImageFolder
from latent_diffusion.data.settings import WordingConfig
from latent_diffusion.errors import ConfigError
from latent_diffusion.families import FAMILIES
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.text_encoder import TextEncoder, TextEncoders
from latent_diffusion.models.unet import UNet, UNetConfig
from latent_diffusion.nn.transformer import TransformerBlock
from latent_diffusion.registry import names, nearest

__all__ = [
    "ModelSettings",
    "build_parts",
    "check_fit",
    "check_sizes",
    "freeze_lone_attention",
    "read_encoders",
    "refuse_unused",
    "with_masks",
]


SIZES, REFINER_SIZES = 6, 5
"""Numbers that SDXL's base and refiner read; the refiner's last is an aesthetic score, which pictures do not have."""


class Parts(Section):
    """Folders of the frozen parts of a model from scratch."""

    vae: str
    """An autoencoder's folder (config.json and weights)."""
    text_encoder: str
    """A folder that holds `text_encoder/` and `tokenizer/`."""


class ModelSettings(Section):
    """Which model: the keys that every objective with a U-Net has in its `objective:` section."""

    init: str | None = None
    """Model to train on from: a bundled name, a diffusers folder or a single file."""
    parts: Parts | None = None
    """Frozen parts beside which a new U-Net is trained, in place of `init`."""
    unet: str | dict[str, Any] | None = None
    """With `parts`: the name of a family, or the fields of `UNetConfig`."""
    scheduler: dict[str, Any] = Field(default_factory=dict)
    """Changes to the noise schedule and default sampler of the model or family, as in scheduler_config.json."""


def build_parts(settings: ModelSettings, *, as_stored: bool = False) -> Components:
    """Load the model of `init`, or build a new U-Net beside `parts`; everything float32 and on the CPU.

    With `as_stored` the U-Net of `init` keeps the formats of its file, whose pages are memory only while they are used.

    Raises:
        ConfigError: settings that do not go together, or a model that is not trained here.
        CheckpointError: a folder is missing or damaged.
    """
    if (settings.init is None) == (settings.parts is None):
        raise ConfigError("objective: give either `init` (a model to train on) or `parts` (from scratch), not both")
    if settings.init is not None:
        if settings.unet is not None:
            raise ConfigError("objective.unet: the U-Net's sizes are those of `init`; leave `unet` out")
        loaded = load_model(settings.init, (lambda weights: None) if as_stored else torch.float32)
        if loaded.size_count == REFINER_SIZES:
            raise ConfigError(
                f"objective.init: {loaded.name} is SDXL's refiner, which is not trained; use its base model"
            )
        config = _changed(without_times(loaded.scheduler_config), settings.scheduler)  # it is trained at others now
        schedule, prediction = read_schedule(config)
        return replace(loaded, schedule=schedule, prediction=prediction, scheduler_config=config)
    assert settings.parts is not None, "checked above"
    config, scheduler = _sizes(settings.unet)
    scheduler = _changed(scheduler, settings.scheduler)
    schedule, prediction = read_schedule(scheduler)
    unet = UNet(config)
    nn.init.zeros_(unet.conv_out.weight)  # starts by predicting 0, the mean of the target
    return Components(
        unet=unet,
        autoencoder=load_autoencoder(Path(settings.parts.vae), torch.float32),
        text_encoder=load_text_encoder(Path(settings.parts.text_encoder)),
        schedule=schedule,
        prediction=prediction,
        scheduler_config=scheduler,
        name="unet",
    )


def read_encoders(settings: ModelSettings) -> tuple[AutoencoderKL, TextEncoder | TextEncoders]:
    """Return autoencoder and text encoder as `build_parts` reads them; no weight of the U-Net is read."""
    if settings.init is not None:
        loaded = load_model(settings.init, left_out=("unet",))
        return loaded.autoencoder, loaded.text_encoder
    assert settings.parts is not None, "`build_parts` has checked it"
    return load_autoencoder(Path(settings.parts.vae), torch.float32), load_text_encoder(
        Path(settings.parts.text_encoder)
    )


def _changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a scheduler's configuration with the fields of `objective.scheduler`, all of which must be read.

    Raises:
        ConfigError: a field without effect.
    """
    changed = {**config, **changes}
    idle = [name for name in unread(changed) if name in changes]
    if idle:
        kind = changed["_class_name"]
        raise ConfigError(
            f"objective.scheduler.{idle[0]}: {kind}, the model's scheduler, does not read it, in diffusers neither; "
            f"leave it out, or set another scheduler too, for example objective.scheduler._class_name=DDIMScheduler"
        )
    return changed


def _sizes(unet: str | dict[str, Any] | None) -> tuple[UNetConfig, dict[str, Any]]:
    """Return the U-Net's sizes and the family's scheduler configuration; plain values take the bundled family's."""
    family = unet if isinstance(unet, str) else "emoji"
    known = names(FAMILIES)
    if unet is None or family not in known:
        raise ConfigError(f"objective.unet: {unet!r} is neither a family ({', '.join(known)}) nor the sizes of a U-Net")
    values = importlib.import_module(f"{FAMILIES}.{family}")
    if isinstance(unet, str):
        return values.UNET, dict(values.SCHEDULER)
    allowed = [field.name for field in fields(UNetConfig)]
    for name in unet:
        if name not in allowed:
            raise ConfigError(f"objective.unet: unknown key {name!r}{nearest(name, allowed)}")
    try:
        return UNetConfig(**unet), dict(values.SCHEDULER)
    except TypeError as error:
        raise ConfigError(f"objective.unet: {error}") from error


def check_fit(parts: Components, size: int, *, learned_variance: bool = False, partner: bool = False) -> None:
    """Refuse parts that do not belong together, before anything is computed.

    Args:
        parts: the model.
        size: of the pictures, px.
        learned_variance: whether the objective trains the second half of an output that also chooses the variance.
        partner: whether it gives the U-Net the latents of another picture, and no mask.
    """
    unet, latent = parts.unet.config, parts.autoencoder.config.latent_channels
    if parts.learned_variance and not learned_variance:
        raise ConfigError(f"{parts.name} has a learned variance, which only objective.name=learned_variance trains")
    fits = parts.reads_partner if partner else parts.plain or parts.for_inpainting
    if unet.out_channels != latent * (1 + parts.learned_variance) or not fits:
        more = f"{2 * latent} with a partner" if partner else f"{2 * latent + 1} with a mask and a masked picture"
        advice = "; one that reads a partner is trained with objective.partner=channels" if parts.reads_partner else ""
        raise ConfigError(
            f"the U-Net reads {unet.in_channels} and writes {unet.out_channels} channels, latents have {latent}; it "
            f"must read {latent}, or {more}, and write {latent}{advice}"
        )
    if unet.cross_attention_dim != parts.text_encoder.width:
        raise ConfigError(
            f"the U-Net's cross_attention_dim is {unet.cross_attention_dim}, "
            f"the text encoder's width {parts.text_encoder.width}"
        )
    if unet.added_width is not None and parts.size_count != SIZES:
        raise ConfigError(
            f"the U-Net reads {unet.added_width} channels of pooled text and sizes, the text encoder gives "
            f"{parts.text_encoder.pooled_width} and {SIZES} sizes have {SIZES * unet.size_width}"
        )
    if size % parts.autoencoder.factor:
        raise ConfigError(f"data.size {size} px is not a multiple of the autoencoder's {parts.autoencoder.factor} px")


def with_masks(parts: Components, settings: Any) -> tuple[Components, bool]:
    """Return the model that is trained, and whether its U-Net is a plain one that got the channels of a mask.

    It gets them where `settings`, those of an objective, have the section `inpainting`.
    """
    repaints = getattr(settings, "inpainting", None) is not None and not parts.for_inpainting
    return with_mask_channels(parts) if repaints else parts, repaints


def check_sizes(data: ImageFolder, factor: int) -> None:
    """Refuse sizes of pictures that the autoencoder does not reduce evenly."""
    if data.config.buckets is not None and data.config.buckets.step % factor:
        raise ConfigError(
            f"data.buckets.step {data.config.buckets.step} px is not a multiple of the autoencoder's {factor} px"
        )


def refuse_unused(data: DataConfig, what: str, *, captions: bool = True) -> None:
    """Refuse settings of the data that an objective other than diffusion does not read.

    Args:
        data: the settings.
        what: what is trained, for the message.
        captions: whether it reads captions.

    Raises:
        ConfigError: naming the setting.
    """
    if data.buckets is not None:
        raise ConfigError(f"data.buckets: {what} is trained on squares of data.size; leave `buckets` out")
    for part in data.parts():
        if part.loss_weight != 1:
            raise ConfigError(f"data.loss_weight: {what} is trained with a weight of 1 for every picture; leave it out")
        drawn = {"caption_dropout": part.caption_dropout > 0, "wording": part.wording != WordingConfig()}
        for name in (name for name, given in drawn.items() if given and not captions):
            raise ConfigError(f"data.{name}: {what} is trained on pictures alone; leave `{name}` out")


def freeze_lone_attention(unet: UNet, side: int) -> None:
    """Do not train self-attention's queries and keys where the picture is one cell: a softmax over one has no gradient.

    Weight decay alone would move them. It happens at the lowest level of Stable Diffusion's U-Net under 128 px.
    """
    sides = [-(-side // 2**level) for level in range(len(unet.config.block_out_channels))]
    places = [*zip(unet.down_blocks, sides), (unet.mid_block, sides[-1]), *zip(unet.up_blocks, reversed(sides))]
    for place, cells in places:
        for block in place.modules():
            if cells == 1 and isinstance(block, TransformerBlock):
                block.attn1.to_q.requires_grad_(False)
                block.attn1.to_k.requires_grad_(False)
