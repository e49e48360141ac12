"""Train the U-Net on latents and captions: from scratch beside trained parts (`parts`), or on from a model (`init`).

The model is `training/networks/parts.py`, the loss `training/losses/denoising.py`.
Reference: Rombach et al. 2022, arXiv:2112.10752, eq. (3); Ho & Salimans 2022, arXiv:2207.12598 (caption dropout).
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from latent_diffusion.adapters.model_parts import parts_of
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.folder.diffusers_folder import save_folder
from latent_diffusion.checkpoint.prompt_forms import PromptForms
from latent_diffusion.config import MemoryConfig
from latent_diffusion.data.batches.folder import DataConfig, open_pictures
from latent_diffusion.data.batches.loader import Batch, batches
from latent_diffusion.data.batches.picture_masks import PictureMasks, warn_of_unused_masks
from latent_diffusion.data.buckets import plan_lines
from latent_diffusion.data.settings import HeldOut
from latent_diffusion.data.tensor_cache import TensorCache, open_cache
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.text_encoder import TextEncoder, TextEncoders
from latent_diffusion.prompts.caption_forms import forms_for_captions
from latent_diffusion.runtime.precision import place, state_dtype
from latent_diffusion.training.copy_test import Copies, find_copies
from latent_diffusion.training.losses.base_prior import BasePrior, BaseSettings
from latent_diffusion.training.losses.conditions import Conditions, Scene
from latent_diffusion.training.losses.denoising import Denoising, HeldOutLoss, LossSettings
from latent_diffusion.training.losses.drawn_masks import DrawnMasks, InpaintingSettings
from latent_diffusion.training.losses.masked_loss import MaskedSettings, PictureAreas
from latent_diffusion.training.monitoring.drawing import Drawing, Sheet
from latent_diffusion.training.monitoring.reopened import check_model
from latent_diffusion.training.networks.encoders import Encoders
from latent_diffusion.training.networks.frozen_states import Latents, LiveTextStates, Sharing, TextStates
from latent_diffusion.training.networks.frozen_weights import round_frozen
from latent_diffusion.training.networks.parts import (
    ModelSettings,
    build_parts,
    check_fit,
    check_sizes,
    freeze_lone_attention,
    read_encoders,
    with_masks,
)
from latent_diffusion.training.networks.stored_base import store_base
from latent_diffusion.training.networks.weight_rules import TrainSettings, choose_weights
from latent_diffusion.training.networks.weights_digest import weights_digest
from latent_diffusion.training.objective import Objective, Share
from latent_diffusion.training.updates.rounding import round_trained

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL.Image import Image

__all__ = ["UNetObjective", "UNetSettings"]

logger = logging.getLogger(__name__)


class DenoisingSettings(ModelSettings, LossSettings):
    """The keys that this objective and that of adapters have in their `objective:` section."""

    latent_cache_bytes: int = Field(default=4 * 2**30, ge=0)
    """Keep latents of all pictures in memory if they take at most this."""
    text_cache_bytes: int = Field(default=2 * 2**30, ge=0)
    """Keep text states of all captions in memory if they take at most this; 0: keep none, list no captions."""
    caption_chunks: int = Field(default=3, ge=1)
    """Chunks of 75 tokens that are read of a caption, as in drawing; what is longer is cut and counted."""
    export_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format of the exported weights."""
    validation: HeldOut | None = None
    """Filter of held-out pictures, in place of `data.where`, or a share of all, as 0.1; their loss is reported."""
    workers: int = Field(default=1, ge=0)
    """Processes that decode pictures ahead."""
    masked: MaskedSettings | None = None
    """Learn a part of each picture, which its mask marks; null: all of it. Keys below."""
    inpainting: InpaintingSettings | None = None
    """Masks of an inpainting U-Net; any other U-Net becomes one, or gets an inpainting adapter. Keys below."""


class UNetSettings(DenoisingSettings):
    """The `objective:` section."""

    train: TrainSettings = TrainSettings()
    """What of the model is trained."""


class UNetObjective(Objective):
    """A whole model of which the U-Net is trained, or a part of it, or text encoders too."""

    settings_type: ClassVar[type[ModelSettings]] = UNetSettings
    data_type = DataConfig
    trains_unet: ClassVar[bool] = True  # whole, in part, or by an adapter
    writes_frozen: bool = True  # whether the result has the frozen weights too, which must then stay exact
    memory = frozenset({"drop_encoders", "update_in_backward", "weights"})
    shards = True
    sample = Sheet.keys
    drawing: ClassVar[Drawing] = Drawing()

    def __init__(self, settings: DenoisingSettings, data: DataConfig, run: Any) -> None:
        """Load or build the parts and read the pictures."""
        self.settings, self.run = settings, run
        self.as_stored = (run.memory or MemoryConfig()).base is not None
        parts, self.repaints = with_masks(self.build(settings, data.size), settings)
        if self.repaints and not self.trains_unet:
            raise ConfigError(
                f"objective.inpainting: the U-Net of {parts.name} reads no mask; make one by the objective unet, or an "
                "adapter by lora"
            )
        batch = run.batch_size // run.accumulation
        self.data, self.held_out = open_pictures(data, settings.validation, run.seed, batch)
        check_sizes(self.data, parts.autoencoder.factor)
        self.base = parts = replace(parts, prompt_forms=self._prompt_forms(parts))
        parts.unet.train().requires_grad_(True).enable_gradient_checkpointing(run.gradient_checkpointing)
        longest = max(max(self.data.size_of(int(group.rows[0]))) for group in self.data.order.groups)
        freeze_lone_attention(parts.unet, longest // parts.autoencoder.factor)
        parts.autoencoder.eval().requires_grad_(False)
        parts.text_encoder.eval().requires_grad_(True)
        self.components, trained = self.choose(parts)
        self.sheet = None
        if run.sample is not None and run.sample.prompts:
            self.sheet = Sheet(self.components, run.sample, data.size, run.precision, self._scenes(), self.drawing)
        self.player = self.denoising(trained)
        if settings.masked is not None:
            self.player.areas = PictureAreas(self.data, settings.masked, parts.autoencoder.factor)
        inpainting = settings.inpainting or InpaintingSettings()
        own = PictureMasks(self.data, "file") if parts.for_inpainting and inpainting.own else None
        self.masks = DrawnMasks(inpainting, run.seed, own) if parts.for_inpainting else None
        if settings.masked is None and own is None:
            warn_of_unused_masks(self.data)
        self.preserve = settings.preserve if isinstance(settings, BaseSettings) else None
        self.outside_prior = 0.0 if settings.masked is None else settings.masked.prior
        if self.outside_prior and not isinstance(settings, BaseSettings):
            raise ConfigError(
                "objective.masked.prior: the base's prediction outside the masks is not there where the base itself is "
                "trained; leave it out, or train an adapter"
            )
        if isinstance(settings, UNetSettings):
            self.player.obey(settings.train.rules)
        self.players = {"unet": self.player}
        self.ema_modules: dict[str, nn.Module] = dict(trained)
        everything = {"vae": parts.autoencoder, **parts_of(parts)}
        self.frozen: dict[str, nn.Module] = {k: v for k, v in everything.items() if v not in trained.values()}

    def build(self, settings: DenoisingSettings, size: int) -> Components:
        """Return the model as training starts; `size` is that of the pictures, px."""
        parts = build_parts(settings, as_stored=self.as_stored)
        check_fit(parts, size)
        return parts

    def _scenes(self) -> list[Scene]:
        """Return the pictures with holes that sample pictures repaint: held-out ones, or else those trained on."""
        if not self.components.for_inpainting:
            return []
        data, settings = self.held_out or self.data, self.settings.inpainting or InpaintingSettings()
        masks = DrawnMasks(settings.model_copy(update={"whole": 0.0}), self.run.sample.seed)
        scenes: list[Scene] = []
        for k in range(len(self.run.sample.prompts)):
            image = data.square(k % len(data)).float() / 127.5 - 1
            scenes.append(Scene(image, masks.drawn(k, *image.shape[-2:])[None]))
        return scenes

    def choose(self, parts: Components) -> tuple[Components, dict[str, nn.Module]]:
        """Return the model that computes, and its networks that are trained, by name.

        Raises:
            ConfigError: input channels beyond the latents', of a mask or a partner, would stay at zero.
        """
        assert isinstance(self.settings, UNetSettings), "other objectives have a choice of their own"
        trained = choose_weights(parts, self.settings.train)
        weight = parts.unet.conv_in.weight
        more = weight[:, parts.autoencoder.config.latent_channels :]
        if more.numel() and not weight.requires_grad and not more.any():
            raise ConfigError(
                f"objective.train: the weights of {more.shape[1]} new input channels, unet.conv_in, start at zero and "
                f"are not trained; add '^unet\\.conv_in' to layers, or use all"
            )
        return parts, trained

    def denoising(self, trained: Mapping[str, nn.Module]) -> Denoising:
        """Return the player that trains these networks."""
        return Denoising(self.components, trained, self.settings, self.run.seed, self.run.batch_size)

    def prepare(self, accelerator: "Accelerator", dtype: torch.dtype) -> None:
        """Move the parts, then encode pictures and captions."""
        parts, settings, memory = self.components, self.settings, self.run.memory or MemoryConfig()
        place(parts.autoencoder, accelerator.device, dtype)
        parts.text_encoder.to(accelerator.device)
        stored = open_cache(self.data.config.cache)
        sharing = Sharing.between(accelerator)
        latents = self.latents(stored, sharing)
        if self.player.trains_text:
            parts.text_encoder.to(dtype)
            texts = LiveTextStates(parts.text_encoder, settings.caption_chunks)
        else:
            texts = self._text_states(parts.text_encoder, stored, sharing)
        self.player.held = (latents, Conditions(parts, texts, self.masks))
        if self.preserve is not None or self.outside_prior:
            live = isinstance(texts, LiveTextStates)
            frozen = self._text_states(self.base.text_encoder, stored, sharing) if live else texts
            conditions = Conditions(self.base, frozen, self.masks)
            self.player.prior = BasePrior(self.base, conditions, self.preserve, self.outside_prior)
        read = partial(read_encoders, settings)
        self.encoders = Encoders((parts, self.base), read, accelerator.device, dtype)
        if memory.drop_encoders:
            self._drop_encoders(latents, texts)
        computing = [name for name in parts_of(parts) if name == "unet" or self.player.trains_text]
        if not self.writes_frozen:
            store_base((self.base, parts), computing, memory, self.run.precision, accelerator.device)
        place(parts.unet, accelerator.device, dtype, self.run.precision)
        if self.run.precision == "bfloat16" and not self.writes_frozen:
            round_frozen(parts.unet)
        if memory.weights == "bfloat16":
            round_trained(parts.unet)

    def latents(self, stored: TensorCache | None, sharing: Sharing) -> Latents:
        """Return what gives the latents of a batch; those of all pictures are kept if they fit."""
        latents = Latents(self.components.autoencoder, self.data, self.run.seed, stored)
        latents.fill(self.settings.latent_cache_bytes, sharing)
        return latents

    def _drop_encoders(self, latents: Latents, texts: TextStates | LiveTextStates) -> None:
        """Drop text encoder and autoencoder, which no update needs.

        Raises:
            ConfigError: updates need one of them.
        """
        needed = {
            "text states change while a text encoder or a word is trained": isinstance(texts, LiveTextStates),
            "the picture around each drawn mask is encoded in every update": self.masks is not None,
            "latents are not cached: raise objective.latent_cache_bytes, set data.cache, or another data.fit": (
                not latents.cached
            ),
            "text states are not cached: raise objective.text_cache_bytes": (
                isinstance(texts, TextStates) and not texts.cached
            ),
        }
        for reason, holds in needed.items():
            if holds:
                raise ConfigError(f"memory.drop_encoders: {reason}; leave it out")
        self.encoders.drop()
        self.frozen = {name: module for name, module in self.frozen.items() if module is self.base.unet}

    def assembled(self) -> AbstractContextManager[None]:
        """Return a context in which dropped encoders are there again."""
        return self.encoders.there()

    def _text_states(
        self, encoder: TextEncoder | TextEncoders, stored: TensorCache | None, sharing: Sharing
    ) -> TextStates:
        """Return what encodes captions by a frozen encoder, all of them kept if they fit."""
        settings = self.settings
        texts = TextStates(encoder, state_dtype(self.run.precision), settings.caption_chunks, stored)
        if not settings.text_cache_bytes:
            logger.info("text states are computed in every step: objective.text_cache_bytes is 0")
            return texts
        captions = self.data.all_captions()
        if captions is None:
            logger.info("text states are computed in every step: captions are drawn without end")
            return texts
        distinct = list(dict.fromkeys(["", *captions]))
        of_class = [] if self.preserve is None else [self.preserve.of_class(caption) for caption in distinct]
        texts.fill([*distinct, *of_class], settings.text_cache_bytes, sharing)
        return texts

    def batches(self, numbers: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """Yield batches; without pixels once latents are cached, unless pictures are masked."""
        pixels = not self.player.held[0].cached or self.components.for_inpainting
        yield from batches(self.data, numbers, self.settings.workers, pixels=pixels)

    def export(self, folder: Path, *, averaged: bool) -> None:
        """Write a whole diffusers folder."""
        save_folder(self.components, folder, getattr(torch, self.settings.export_dtype))

    def verify(self, folder: Path) -> None:
        """Open the folder and compare its outputs with those of the trained model."""
        check_model(folder, self.components, self.settings.export_dtype)
        logger.info("the model gives the trained outputs, read back by this package")

    def plan_lines(self) -> list[str]:
        """Return the table of the sizes that are trained on, with buckets."""
        return [] if self.data.one_size else plan_lines(self.data.plan())

    def pass_samples(self) -> int:
        """Return the sample numbers of a pass."""
        return self.data.pass_length

    def fingerprint(self) -> dict[str, str]:
        """Return the digests of the data and of the weights the run starts from, as read from their files."""
        parts = self.base
        prints = {"data.path": self.data.digest}
        if self.player.areas is not None:
            prints["objective.masked"] = self.player.areas.masks.digest
        if self.masks is not None and self.masks.own is not None:
            prints["objective.inpainting"] = self.masks.own.digest
        if self.settings.init is not None:
            prints["objective.init"] = weights_digest(
                parts.unet, parts.autoencoder, parts.text_encoder, stay=not self.as_stored
            )
        else:
            prints["objective.parts.vae"] = weights_digest(parts.autoencoder)
            prints["objective.parts.text_encoder"] = weights_digest(parts.text_encoder)
        return prints

    def evaluate(self, share: Share) -> dict[str, Tensor]:
        """Return the loss of held-out pictures, and that at one time in each quarter of the times."""
        if self.held_out is None:
            return {}
        return HeldOutLoss(self.player, self.held_out, self.components.autoencoder, self.run).measure(share)

    def draw(self, share: Share) -> "list[Image]":
        """Return pictures of the run's prompts; prompt k has seed `sample.seed` + k."""
        return [] if self.sheet is None else self.sheet.draw(share)

    def sheets(self, pictures: "list[Image]") -> "list[Image]":
        """Return one sheet, each picture above its prompt."""
        return [] if self.sheet is None else [self.sheet.tiled(pictures)]

    def copies(self, pictures: "list[Image]") -> Copies | None:
        """Return the training picture nearest to each sample picture."""
        return find_copies(pictures, self.data)

    def _prompt_forms(self, parts: Components) -> PromptForms | None:
        """Return the forms that prompts of the trained model are rewritten to: its captions must stay as they are."""
        if parts.prompt_forms is None:
            return None
        captions = self.data.all_captions()
        forms = None if captions is None else forms_for_captions(parts.prompt_forms, captions)
        if forms is None:
            message = "the captions do not have the prompt forms of %s: the trained model reads prompts as typed"
            logger.info(message, parts.name)
        return forms
