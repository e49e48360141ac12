"""Train a bridge between two sets of pictures: a flow that starts at one picture and ends at its partner.

Sampling starts at the latents of a picture in place of noise (`latents=`), with any sampler that draws none. The player
is `training/losses/coupled.py`.
Reference: Liu et al. 2023, arXiv:2209.03003, section 2.1 and 3.3 (transfer between two sets of pictures).
"""

import logging
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from pydantic import Field
from torch import nn

from latent_diffusion.data.batches.folder import DataConfig, ImageFolder
from latent_diffusion.errors import ConfigError, DataError
from latent_diffusion.training.losses.coupled import Coupled, Partners
from latent_diffusion.training.losses.denoising import Denoising
from latent_diffusion.training.networks.frozen_states import Latents, Sharing
from latent_diffusion.training.objectives.reflow import CoupledSettings
from latent_diffusion.training.objectives.unet import UNetObjective

if TYPE_CHECKING:
    from collections.abc import Mapping

    from accelerate import Accelerator

__all__ = ["BridgeObjective", "BridgeSettings"]

logger = logging.getLogger(__name__)


class BridgeSettings(CoupledSettings):
    """The `objective:` section."""

    start: dict[str, str | list[str]] = Field(min_length=1)
    """Filter of the pictures that are started from, in place of `data.where`, as {style: fluent-mono}."""
    match: str = "name"
    """Field whose value a picture and its partner share."""


class BridgeObjective(UNetObjective):
    """A model that is trained to turn one picture into another."""

    settings_type = BridgeSettings
    shards = False
    settings: BridgeSettings
    player: Coupled

    def __init__(self, settings: BridgeSettings, data: DataConfig, run: Any) -> None:
        """Load the model, read both sets of pictures and find the partners.

        Raises:
            ConfigError: pictures that are mirrored, cropped at random or of several sizes.
            DataError: no picture has a partner.
        """
        for part in data.parts():
            if part.flip or part.fit == "random_crop":
                raise ConfigError("data: a picture and its partner are shown alike; leave flip and random_crop out")
        if data.buckets is not None:
            raise ConfigError("data.buckets: a bridge is trained on squares of data.size; leave it out")
        super().__init__(settings, data, run)
        self.started = ImageFolder(data.held_out(settings.start), run.seed)
        by_value = {}
        for row in range(len(self.started)):
            by_value.setdefault(self.started.rows[row].get(settings.match), row)
        values = {row: self.data.rows[row].get(settings.match) for row in range(len(self.data))}
        self.rows = {row: by_value[v] for row, v in values.items() if v is not None and v in by_value}
        if not self.rows:
            raise DataError(
                f"objective.match: no picture of data.where shares its {settings.match!r} with one of objective.start"
            )
        told = "%d of %d pictures have a partner; the others are not trained on"
        logger.info(told, len(self.rows), len(self.data))

    def denoising(self, trained: "Mapping[str, nn.Module]") -> Denoising:
        """Return the player."""
        return Coupled(self.components, trained, self.settings, self.run.seed, self.run.batch_size)

    def prepare(self, accelerator: "Accelerator", dtype: torch.dtype) -> None:
        """Move the parts and encode both sets of pictures."""
        starts = Latents(self.components.autoencoder.to(accelerator.device, dtype), self.started, self.run.seed)
        sharing = Sharing(
            accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone, gather_object
        )
        starts.fill(self.settings.latent_cache_bytes, sharing)
        if not starts.cached:
            raise ConfigError("objective.latent_cache_bytes: the latents of the starts are kept in memory; raise it")
        self.player.coupling = Partners(starts, self.rows)
        super().prepare(accelerator, dtype)

    def fingerprint(self) -> dict[str, str]:
        """Return the digests of both sets of pictures and of the model the run starts from."""
        return super().fingerprint() | {"objective.start": self.started.digest}
