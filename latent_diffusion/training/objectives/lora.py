"""Train small changes of a model's layers (LoRA, rsLoRA, LoHa, LoKr, DoRA) and write them as an adapter file.

The layers are `nn/low_rank.py`, the choice of layers `training/adapter_layers.py`, the loss `training/denoising.py`.
Reference: Hu et al. 2021, arXiv:2106.09685.
"""

from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import nn

from latent_diffusion.adapters.lora_file import read_lora
from latent_diffusion.adapters.merge import adapted
from latent_diffusion.adapters.model_parts import parts_of
from latent_diffusion.adapters.writing import LoraFormat, write_factors
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.data.folder import DataConfig
from latent_diffusion.errors import CheckpointError
from latent_diffusion.training.adapter_layers import AdaptedModel, AdapterSettings, adapt
from latent_diffusion.training.adapter_metadata import adapter_metadata
from latent_diffusion.training.learned_words import LearnedWords, WordSettings, learn_words
from latent_diffusion.training.objectives.unet import DenoisingSettings, UNetObjective
from latent_diffusion.training.weight_rules import WeightRule
from latent_diffusion.training.word_files import write_words

__all__ = ["LoraObjective", "LoraSettings"]

AGREEMENT = 1e-4
"""Largest difference between the trained layers and those read back from the file, of the largest output."""


class LoraSettings(DenoisingSettings):
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
    settings: LoraSettings
    adapter: AdaptedModel
    words: LearnedWords | None

    def __init__(self, settings: LoraSettings, data: DataConfig, run: Any) -> None:
        """Load the model, read the pictures and put the changes in place."""
        super().__init__(settings, data, run)
        of_words = WeightRule(match=r"^words\.", learning_rate=settings.words_learning_rate)
        self.player.obey([*settings.adapter.rules, of_words])

    def choose(self, parts: Components) -> tuple[Components, dict[str, nn.Module]]:
        """Return the model with the changes in place, the changes of each network, and the vectors of words."""
        self.words = None
        reading = parts
        if self.settings.words:
            self.words = learn_words(parts, self.settings.words, self._captions())
            reading = self.words.components
        parts.text_encoder.requires_grad_(True)
        self.adapter = adapt(reading, self.settings.adapter, self.run.seed)
        parts.unet.requires_grad_(False)
        parts.text_encoder.requires_grad_(False)
        rows = {} if self.words is None else {"words": self.words.rows}
        return self.adapter.components, {**self.adapter.modules(), **rows}

    def _prompt_forms(self, parts: Components) -> None:
        """Return None: prompts of a model with an adapter are read as typed."""

    def export(self, folder: Path, *, averaged: bool) -> None:
        """Write the adapter in kohya's layout and, where it has keys for the form, in PEFT's; then read both back.

        Raises:
            CheckpointError: a file read back does not give the trained layers.
        """
        name, factors = self.run.output.name or "adapter", self.adapter.factors()
        dtype = getattr(torch, self.settings.export_dtype)
        stored = {
            part: {
                path: {field: tensor if field == "alpha" else tensor.to(dtype) for field, tensor in fields.items()}
                for path, fields in layers.items()
            }
            for part, layers in factors.items()
        }
        metadata = adapter_metadata(self.base, self.settings.adapter, self.run, name, self.data)
        files: dict[LoraFormat, Path] = {"kohya": folder / f"{name}.safetensors"}
        if self.settings.adapter.form == "lora":
            files["peft"] = folder / "pytorch_lora_weights.safetensors"
        for layout, file in files.items():
            write_factors(file, stored, layout, metadata, towers=len(self.base.text_encoder.towers))
            self._check(file)
        if self.words is not None:
            write_words(folder, self.words, self.base, self.settings.export_dtype)

    @torch.no_grad()
    def _check(self, file: Path) -> None:
        """Compare the trained layers with the base's changed by the file, on random inputs."""
        read = read_lora(file, self.base)
        bound = AGREEMENT if self.settings.export_dtype == "float32" else 2e-2  # the file's factors are rounded
        draw = torch.Generator().manual_seed(0)
        ours = parts_of(self.components)
        for part, changes in self.adapter.changes.items():
            network = adapted(parts_of(self.base)[part], [(read.updates.get(part, {}), 1.0)])
            for path in changes:
                trained, changed = ours[part].get_submodule(path), network.get_submodule(path)
                weight = changed.get_parameter("weight")
                shape = (2, 3, weight.shape[1]) if weight.ndim == 2 else (2, weight.shape[1], 8, 8)
                x = torch.randn(*shape, generator=draw).to(weight)
                wanted, found = trained(x), changed(x)
                off = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
                if not off <= bound:
                    raise CheckpointError(
                        f"{file}: {part}.{path} read back differs from the trained layer by {off:.2g}; at most {bound}"
                    )
