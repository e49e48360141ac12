"""Learn words: vectors of new tokens are trained, and everything else stays as it is.

The words are `training/adapters/learned_words.py`, the loss `training/losses/denoising.py`.
Reference: Gal et al. 2022, arXiv:2208.01618.
"""

from pathlib import Path

from pydantic import Field
from torch import nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.training.adapters.learned_words import LearnedWords, WordSettings, learn_words
from latent_diffusion.training.adapters.word_files import write_words
from latent_diffusion.training.losses.base_prior import BaseSettings
from latent_diffusion.training.objectives.unet import DenoisingSettings, UNetObjective

__all__ = ["TextualInversionObjective", "TextualInversionSettings"]


class TextualInversionSettings(DenoisingSettings, BaseSettings):
    """The `objective:` section."""

    words: list[WordSettings] = Field(min_length=1)
    """Words to learn, each with `token`, `start` and `vectors`."""


class TextualInversionObjective(UNetObjective):
    """A frozen model whose text encoders learn words."""

    settings_type = TextualInversionSettings
    trains_unet = False
    writes_frozen = False
    shards = False
    memory = frozenset({"base", "base_on_host", "drop_encoders"})
    settings: TextualInversionSettings
    words: LearnedWords

    def choose(self, parts: Components) -> tuple[Components, dict[str, nn.Module]]:
        """Return the model that reads the words, and their vectors."""
        self.words = learn_words(parts, self.settings.words, self.data.all_captions())
        parts.unet.requires_grad_(False)
        parts.text_encoder.requires_grad_(False)
        return self.words.components, {"words": self.words.rows}

    def export(self, folder: Path, *, averaged: bool) -> None:
        """Write each word as A1111 and diffusers read it, and read the files back."""
        write_words(folder, self.words, self.base, self.settings.export_dtype)

    def verify(self, folder: Path) -> None:
        """Do nothing more: `export` has compared the vectors of each file."""
