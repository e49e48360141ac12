"""Erase, exchange or slide concepts from prompts alone: an adapter is trained without any picture.

The target and the latents are `training/losses/sliding.py`, the layers `training/adapters/adapter_layers.py`.
Reference: Gandikota et al. 2023, arXiv:2303.07345 (erasing); 2023, arXiv:2311.12092 (sliders).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import nn

from latent_diffusion.adapters.model_parts import parts_of
from latent_diffusion.config import MemoryConfig, Section
from latent_diffusion.errors import ConfigError
from latent_diffusion.runtime.precision import place
from latent_diffusion.training.adapters.adapter_files import verify_adapter, write_adapter
from latent_diffusion.training.adapters.adapter_layers import AdapterSettings
from latent_diffusion.training.adapters.started_adapter import start_adapter, start_digest
from latent_diffusion.training.losses.sliding import ConceptSettings, Numbers, Sliding, SlidingSettings
from latent_diffusion.training.monitoring.drawing import Sheet
from latent_diffusion.training.networks.encoders import Encoders
from latent_diffusion.training.networks.frozen_weights import round_frozen
from latent_diffusion.training.networks.parts import (
    ModelSettings,
    build_parts,
    check_fit,
    freeze_lone_attention,
    read_encoders,
)
from latent_diffusion.training.networks.stored_base import store_base
from latent_diffusion.training.networks.weights_digest import weights_digest
from latent_diffusion.training.objective import Objective, Share

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL.Image import Image

__all__ = ["ConceptsObjective", "ConceptsSettings"]


class ConceptsSettings(ModelSettings, SlidingSettings):
    """The `objective:` section."""

    concepts: list[ConceptSettings] = Field(min_length=1)
    """Prompts and where their predictions move: each `prompt`, `toward`, `away`, `anchor` and `strength`."""
    adapter: AdapterSettings = AdapterSettings()
    """Layers, form and size of the change."""
    export_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format of the exported weights."""


class PromptsConfig(Section):
    """The `data:` section of a run without pictures."""

    size: int = Field(gt=0)
    """Side of the pictures that the latents are on their way to, in px."""


class ConceptsObjective(Objective):
    """A frozen model and the changes that move its predictions for some prompts."""

    settings_type = ConceptsSettings
    data_type = PromptsConfig
    memory = frozenset({"base", "base_on_host", "drop_encoders"})
    sample = Sheet.keys

    def __init__(self, settings: ConceptsSettings, data: PromptsConfig, run: Any) -> None:
        """Load the model and put the changes in place.

        Raises:
            ConfigError: no model to start from, or one that the settings do not fit.
        """
        self.settings, self.data, self.run = settings, data, run
        if settings.init is None:
            raise ConfigError("objective.init: give the model whose concepts are changed")
        self.as_stored = (run.memory or MemoryConfig()).base is not None
        self.base = parts = build_parts(settings, as_stored=self.as_stored)
        check_fit(parts, data.size)
        parts.unet.train().requires_grad_(True).enable_gradient_checkpointing(run.gradient_checkpointing)
        freeze_lone_attention(parts.unet, data.size // parts.autoencoder.factor)
        parts.autoencoder.eval().requires_grad_(False)
        parts.text_encoder.eval().requires_grad_(True)
        self.adapter, form = start_adapter(parts, settings.adapter, run.seed)
        self.settings = settings = settings.model_copy(update={"adapter": form})
        parts.unet.requires_grad_(False)
        parts.text_encoder.requires_grad_(False)
        self.components = self.adapter.components
        self.sheet = None
        if run.sample is not None and run.sample.prompts:
            self.sheet = Sheet(self.components, run.sample, data.size, run.precision)
        trained = self.adapter.modules()
        self.player = Sliding(parts, self.components, trained, settings.concepts, settings, run.seed, data.size)
        self.player.obey(settings.adapter.rules)
        self.players = {"unet": self.player}
        self.ema_modules: dict[str, nn.Module] = dict(trained)
        self.frozen: dict[str, nn.Module] = {"vae": parts.autoencoder, **parts_of(parts)}

    def prepare(self, accelerator: "Accelerator", dtype: torch.dtype) -> None:
        """Move the parts and encode the prompts."""
        parts, memory = self.components, self.run.memory or MemoryConfig()
        place(parts.autoencoder, accelerator.device, dtype)
        computing = [name for name in parts_of(parts) if name == "unet" or self.player.trains_text]
        store_base((self.base, parts), computing, memory, self.run.precision, accelerator.device)
        place(parts.unet, accelerator.device, dtype, self.run.precision)
        parts.text_encoder.to(accelerator.device, dtype)
        self.player.encode()
        if self.run.precision == "bfloat16":
            round_frozen(parts.unet)
        read = partial(read_encoders, self.settings)
        self.encoders = Encoders((parts, self.base), read, accelerator.device, dtype)
        if memory.drop_encoders:
            if self.player.trains_text:
                raise ConfigError(
                    "memory.drop_encoders: text states change while a text encoder is trained; leave it out"
                )
            self.encoders.drop()
            self.frozen = {"unet": self.base.unet}

    def assembled(self) -> AbstractContextManager[None]:
        """Return a context in which dropped encoders are there again."""
        return self.encoders.there()

    def batches(self, numbers: Iterable[Sequence[int]]) -> Iterator[Numbers]:
        """Yield the sample numbers alone."""
        yield from (Numbers(tuple(chosen)) for chosen in numbers)

    def export(self, folder: Path, *, averaged: bool) -> None:
        """Write the adapter, as `lora` does."""
        settings = self.settings
        write_adapter(
            folder,
            self.base,
            self.adapter,
            settings.adapter,
            self.run,
            settings.export_dtype,
            pictures=0,
            size=self.data.size,
        )

    def verify(self, folder: Path) -> None:
        """Read the adapter back, by diffusers too."""
        settings = self.settings
        verify_adapter(folder, self.base, self.adapter, settings.adapter, self.run, settings.export_dtype)

    def draw(self, share: Share) -> "list[Image]":
        """Return pictures of the run's prompts; prompt k has seed `sample.seed` + k."""
        return [] if self.sheet is None else self.sheet.draw(share)

    def sheets(self, pictures: "list[Image]") -> "list[Image]":
        """Return one sheet, each picture above its prompt."""
        return [] if self.sheet is None else [self.sheet.tiled(pictures)]

    def fingerprint(self) -> dict[str, str]:
        """Return the digests of the weights and of the adapter the run starts from, as read from their files."""
        parts = self.base
        digest = weights_digest(parts.unet, parts.autoencoder, parts.text_encoder, stay=not self.as_stored)
        return {"objective.init": digest} | start_digest(self.settings.adapter)
