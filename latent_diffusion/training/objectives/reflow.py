"""Straighten the paths of a model (reflow): train it on noise and what the model itself draws from that noise.

The pairs are drawn once, by key, and kept on disk. Weights, noise law and prediction stay those of the model, since on
its own law any prediction is a flow (`diffusion/straight.py`). The player is `training/losses/coupled.py`.
Reference: Liu et al. 2023, arXiv:2209.03003, algorithm 1; Liu et al. 2024, arXiv:2309.06380 (text to image).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, model_validator
from torch import nn

from latent_diffusion.config import Section
from latent_diffusion.data.batches.folder import DataConfig
from latent_diffusion.data.settings import WordingConfig
from latent_diffusion.data.tensor_cache import TensorCache
from latent_diffusion.errors import ConfigError
from latent_diffusion.training.losses.coupled import Coupled, DrawnPairs
from latent_diffusion.training.losses.denoising import Denoising
from latent_diffusion.training.networks.frozen_states import Sharing
from latent_diffusion.training.objectives.unet import UNetObjective, UNetSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from accelerate import Accelerator

__all__ = ["ReflowObjective", "ReflowSettings"]


class PairSettings(Section):
    """The `objective.pairs:` section: how the model draws what it is trained on."""

    folder: str | None = None
    """Folder that keeps the drawn latents, which several runs may share; null: `pairs` in the run's own."""
    per_picture: int = Field(default=1, ge=1)
    """Pairs for each caption of the data."""
    steps: int = Field(default=20, ge=1, le=1000)
    """Sampling steps (DPM++ 2M) from noise to a picture."""
    guidance_scale: float = Field(default=1.0, ge=0)
    """Scale of classifier-free guidance in drawing, which becomes part of the trained model."""


class CoupledSettings(UNetSettings):
    """The keys of objectives whose pictures have a start in place of noise, or a partner."""

    @model_validator(mode="after")
    def _with_partners(self) -> "CoupledSettings":
        for name in ("offset_noise", "validation", "masked", "inpainting"):
            if getattr(self, name):
                raise ValueError(f"{name} is for training on pictures without a start or partner; leave it out")
        return self


class ReflowSettings(CoupledSettings):
    """The `objective:` section."""

    pairs: PairSettings = PairSettings()
    """How the pairs are drawn and where they are kept. Keys below."""


class ReflowObjective(UNetObjective):
    """A model that is trained on what it draws."""

    settings_type = ReflowSettings
    memory = frozenset({"drop_encoders", "update_in_backward"})  # the pairs are drawn with exact weights
    shards = False
    settings: ReflowSettings
    player: Coupled
    pairs: DrawnPairs

    def __init__(self, settings: ReflowSettings, data: DataConfig, run: Any) -> None:
        """Load the model and read the captions.

        Raises:
            ConfigError: no model to start from, or captions that are drawn.
        """
        if settings.init is None:
            raise ConfigError("objective.init: give the model that draws the pairs and is trained on them")
        if settings.train.parts != ["unet"]:
            raise ConfigError("objective.train.parts: pairs are drawn with the text encoder as it is; train [unet]")
        _refuse_drawn(data)
        super().__init__(settings, data, run)
        several = [row for row in range(len(self.data)) if sum(map(len, self.data.captions[row])) != 1]
        if several:
            name = self.data.rows[several[0]]["file_name"]
            raise ConfigError(
                f"data.captions: {name!r} has several captions, and a pair has one; name one field, as in [text]"
            )

    def denoising(self, trained: "Mapping[str, nn.Module]") -> Denoising:
        """Return the player."""
        return Coupled(self.components, trained, self.settings, self.run.seed, self.run.batch_size)

    def latents(self, stored: TensorCache | None, sharing: Sharing) -> DrawnPairs:  # pyright: ignore[reportIncompatibleMethodOverride]  # as it is used: by batch
        """Return the pairs, which are drawn once the captions are encoded."""
        chosen = self.settings.pairs
        folder = Path(chosen.folder) if chosen.folder is not None else Path(self.run.output) / "pairs"
        how = (chosen.per_picture, chosen.steps, chosen.guidance_scale, self.settings.caption_chunks)
        self.pairs = DrawnPairs(self.components, self.data, self.run.seed, folder, *how)
        return self.pairs

    def prepare(self, accelerator: "Accelerator", dtype: torch.dtype) -> None:
        """Move the parts, encode the captions and draw the pairs."""
        super().prepare(accelerator, dtype)
        texts = self.player.held[1].texts
        sharing = Sharing.between(accelerator)
        self.pairs.draw(self.components, self.components.unet, texts, sharing)
        self.player.coupling = self.pairs


def _refuse_drawn(data: DataConfig) -> None:
    """Refuse settings by which a sample's caption or picture is drawn: its pair has one of each."""
    for part in data.parts():
        drawn = {
            "flip": part.flip,
            "caption_dropout": part.caption_dropout > 0,
            "wording": part.wording != WordingConfig(),
        }
        for name in (name for name, given in drawn.items() if given):
            raise ConfigError(f"data.{name}: the pictures are those that the model draws of each caption; leave it out")
    if data.buckets is not None:
        raise ConfigError("data.buckets: the pictures are drawn as squares of data.size; leave it out")
