"""Train small changes of a model's layers (LoRA, rsLoRA, LoHa, LoKr, DoRA) and write them as an adapter file.

The layers are `nn/low_rank.py`, the choice of layers `training/adapters/adapter_layers.py`, the loss
`training/losses/denoising.py`.
Reference: Hu et al. 2021, arXiv:2106.09685.
"""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from torch import nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.data.batches.folder import DataConfig
from latent_diffusion.training.adapters.adapter_files import verify_adapter, write_adapter
from latent_diffusion.training.adapters.adapter_layers import AdaptedModel, AdapterSettings
from latent_diffusion.training.adapters.learned_words import LearnedWords, WordSettings, learn_words
from latent_diffusion.training.adapters.started_adapter import start_adapter, start_digest
from latent_diffusion.training.adapters.word_files import write_words
from latent_diffusion.training.losses.base_prior import BaseSettings
from latent_diffusion.training.networks.weight_rules import WeightRule
from latent_diffusion.training.objectives.unet import DenoisingSettings, UNetObjective

__all__ = ["LoraObjective", "LoraSettings"]


class LoraSettings(DenoisingSettings, BaseSettings):
    """The `objective:` section."""

    adapter: AdapterSettings = AdapterSettings()
    """Layers, form and size of the change."""
    words: list[WordSettings] = Field(default_factory=list)
    """Words to learn beside the adapter, each with `token`, `start` and `vectors`."""
    words_learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the words' vectors; null: that of the optimizer."""

    @model_validator(mode="after")
    def _rate_of_words(self) -> "LoraSettings":
        if self.words_learning_rate is not None and not self.words:
            raise ValueError("words_learning_rate is for `words`, which is empty")
        return self


class LoraObjective(UNetObjective):
    """A frozen model beside whose layers small changes are trained."""

    settings_type = LoraSettings
    writes_frozen = False
    shards = False
    memory = frozenset({"base", "base_on_host", "drop_encoders"})
    settings: LoraSettings
    adapter: AdaptedModel
    words: LearnedWords | None

    def __init__(self, settings: LoraSettings, data: DataConfig, run: Any) -> None:
        """Load the model, read the pictures and put the changes in place."""
        super().__init__(settings, data, run)
        of_words = WeightRule(match=r"^words\.", learning_rate=settings.words_learning_rate)
        self.player.obey([*self.settings.adapter.rules, of_words])

    def choose(self, parts: Components) -> tuple[Components, dict[str, nn.Module]]:
        """Return the model with the changes in place, the changes of each network, and the vectors of words."""
        self.words = None
        reading = parts
        if self.settings.words:
            self.words = learn_words(parts, self.settings.words, self.data.all_captions())
            reading = self.words.components
        parts.text_encoder.requires_grad_(True)
        self.adapter, form = start_adapter(reading, self.settings.adapter, self.run.seed, repaints=self.repaints)
        self.settings = self.settings.model_copy(update={"adapter": form})
        parts.unet.requires_grad_(False)
        parts.text_encoder.requires_grad_(False)
        rows = {} if self.words is None else {"words": self.words.rows}
        return self.adapter.components, {**self.adapter.modules(), **rows}

    def _prompt_forms(self, parts: Components) -> None:
        """Return None: prompts of a model with an adapter are read as typed."""

    def export(self, folder: Path, *, averaged: bool) -> None:
        """Write the adapter in kohya's layout and, where it has keys for the form, in PEFT's."""
        write_adapter(
            folder,
            self.base,
            self.adapter,
            self.settings.adapter,
            self.run,
            self.settings.export_dtype,
            pictures=len(self.data),
            size=self.data.config.size,
            usage="for inpainting: the U-Net reads a mask and the masked picture too" if self.repaints else "",
        )
        if self.words is not None:
            write_words(folder, self.words, self.base, self.settings.export_dtype)

    def fingerprint(self) -> dict[str, str]:
        """Return the digests of the data, of the weights and of the adapter the run starts from."""
        return super().fingerprint() | start_digest(self.settings.adapter)

    def verify(self, folder: Path) -> None:
        """Read the adapter back, by diffusers too."""
        settings = self.settings
        verify_adapter(folder, self.base, self.adapter, settings.adapter, self.run, settings.export_dtype)
