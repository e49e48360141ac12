"""Train a bridge between two sets of pictures: a flow that starts at one picture and ends at its partner.

Sampling starts at the latents of a picture in place of noise (`latents=`), with any sampler that draws none. What it is
compared with is ordinary diffusion that reads the partner: `partner: channels` makes a U-Net with twice the input
channels, the weights of the new ones zero. The players are `training/losses/coupled.py`.
Reference: Liu et al. 2023, arXiv:2209.03003, section 2.1 and 3.3 (transfer between two sets of pictures); Brooks et al.
2023, arXiv:2211.09800, section 3.2 (channels).
"""

import logging
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import nn

from latent_diffusion.adapters.mask_channels import with_more_channels
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.data.batches.folder import DataConfig, ImageFolder
from latent_diffusion.data.rows.metadata import values_of
from latent_diffusion.errors import ConfigError, DataError
from latent_diffusion.training.losses.coupled import Beside, Coupled, Paired, Partners
from latent_diffusion.training.losses.denoising import Denoising
from latent_diffusion.training.networks.frozen_states import Latents, Sharing
from latent_diffusion.training.networks.parts import build_parts, check_fit
from latent_diffusion.training.objectives.reflow import CoupledSettings
from latent_diffusion.training.objectives.unet import DenoisingSettings, UNetObjective

if TYPE_CHECKING:
    from collections.abc import Mapping

    from accelerate import Accelerator

__all__ = ["BridgeObjective", "BridgeSettings"]

logger = logging.getLogger(__name__)


class BridgeSettings(CoupledSettings):
    """The `objective:` section."""

    start: dict[str, str | list[str]] = Field(min_length=1)
    """Filter of the partners, in place of `data.where`, as {style: fluent-mono}."""
    partner: Literal["start", "channels"] = "start"
    """Sampling starts at the partner's latents, or at noise with them as more input channels of the U-Net."""
    match: str = "name"
    """Field whose value a picture and its partner share."""


class BridgeObjective(UNetObjective):
    """A model that is trained to turn one picture into another."""

    settings_type = BridgeSettings
    shards = False
    settings: BridgeSettings
    player: Paired

    def __init__(self, settings: BridgeSettings, data: DataConfig, run: Any) -> None:
        """Load the model, read both sets of pictures and find the partners.

        Raises:
            ConfigError: pictures that are mirrored, cropped at random or of several sizes, or sample pictures of a
                U-Net that reads the partner.
            DataError: no picture has a partner, a picture has several values of `match`, or two starts share one.
        """
        for part in data.parts():
            if part.flip or part.fit == "random_crop":
                raise ConfigError("data: a picture and its partner are shown alike; leave flip and random_crop out")
        if data.buckets is not None:
            raise ConfigError("data.buckets: a bridge is trained on squares of data.size; leave it out")
        if settings.partner == "channels" and run.sample is not None:
            raise ConfigError(
                "sample: sample pictures are drawn of a prompt alone, and with objective.partner channels the U-Net "
                "reads a picture too; leave it out"
            )
        super().__init__(settings, data, run)
        self.started = ImageFolder(data.held_out(settings.start), run.seed)
        starts: dict[str, int] = {}
        for row, value in _values(self.started, settings.match).items():
            if value in starts:
                first, second = (self.started.rows[one]["file_name"] for one in (starts[value], row))
                raise DataError(
                    f"objective.match: {first!r} and {second!r} of objective.start both have {settings.match} "
                    f"{value!r}; a start is found by a value of its own: name another field, or filter objective.start"
                )
            starts[value] = row
        values = _values(self.data, settings.match)
        self.rows = {row: starts[value] for row, value in values.items() if value in starts}
        if not self.rows:
            raise DataError(
                f"objective.match: no picture of data.where shares its {settings.match!r} with one of objective.start"
            )
        told = "%d of %d pictures have a partner; the others are not trained on"
        logger.info(told, len(self.rows), len(self.data))

    def build(self, settings: DenoisingSettings, size: int) -> Components:
        """Return the model, with a U-Net that reads a partner where one is read."""
        assert isinstance(settings, BridgeSettings), "the objective's own"
        if settings.partner == "start":
            return super().build(settings, size)
        parts = build_parts(settings)
        if parts.plain:
            parts = with_more_channels(parts, parts.autoencoder.config.latent_channels)
        check_fit(parts, size, partner=True)
        return parts

    def denoising(self, trained: "Mapping[str, nn.Module]") -> Denoising:
        """Return the player."""
        player = Coupled if self.settings.partner == "start" else Beside
        return player(self.components, trained, self.settings, self.run.seed, self.run.batch_size)

    def prepare(self, accelerator: "Accelerator", dtype: torch.dtype) -> None:
        """Move the parts and encode both sets of pictures."""
        starts = Latents(self.components.autoencoder.to(accelerator.device, dtype), self.started, self.run.seed)
        sharing = Sharing.between(accelerator)
        starts.fill(self.settings.latent_cache_bytes, sharing)
        if not starts.cached:
            raise ConfigError("objective.latent_cache_bytes: the latents of the starts are kept in memory; raise it")
        self.player.coupling = Partners(starts, self.rows)
        super().prepare(accelerator, dtype)

    def fingerprint(self) -> dict[str, str]:
        """Return the digests of both sets of pictures and of the model the run starts from."""
        return super().fingerprint() | {"objective.start": self.started.digest}


def _values(data: ImageFolder, field: str) -> dict[int, str]:
    """Return the value of `field` of each row that has one.

    Raises:
        DataError: a row with several.
    """
    found: dict[int, str] = {}
    for row in range(len(data)):
        values = sorted(values_of(data.rows[row], field))
        if len(values) > 1:
            raise DataError(
                f"objective.match: {data.rows[row]['file_name']!r} has {len(values)} values of {field!r} "
                f"({', '.join(values)}), where one is read; name a field with one value"
            )
        if values:
            found[row] = values[0]
    return found
