"""What objectives share that train a network of noisy latents beside a model: `x = alpha_t x0 + sigma_t noise`.

The model gives latents and noise levels and stays as it is; the network is exported as config.json and
model.safetensors, and its gradient guides drawing.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from pydantic import Field
from torch import nn

from latent_diffusion.checkpoint.folder.latent_tower_folder import save_tower
from latent_diffusion.checkpoint.load import load_model
from latent_diffusion.config import Section
from latent_diffusion.data.batches.folder import DataConfig, open_pictures
from latent_diffusion.data.batches.loader import Batch, batches
from latent_diffusion.data.batches.picture_masks import warn_of_unused_masks
from latent_diffusion.data.settings import HeldOut
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.latent_tower import LatentTower
from latent_diffusion.runtime.precision import place
from latent_diffusion.training.losses.keyed_times import KeyedTimes, TimesSettings
from latent_diffusion.training.networks.frozen_states import Sharing
from latent_diffusion.training.networks.noisy_latents import NoisyLatents
from latent_diffusion.training.networks.parts import check_sizes, refuse_unused
from latent_diffusion.training.objective import Objective, Player

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["NoisyTowerObjective", "TowerSettings"]

N = TypeVar("N", bound=LatentTower)


class TowerSettings(Section):
    """Keys of the `objective:` section that every such objective has."""

    model: str = "emoji"
    """Model whose latents and noise levels are read: a bundled name, a diffusers folder or a single file."""
    channels: list[int] = Field(default=[64, 128, 192], min_length=1)
    """Channels of the residual blocks, one for each size of the latents, which is halved between two."""
    blocks: int = Field(default=1, ge=1)
    """Residual blocks of each size."""
    groups: int = Field(default=32, ge=1)
    """Groups of each GroupNorm; `channels` are multiples."""
    times: TimesSettings = TimesSettings()
    """Which noise levels are trained on; `high: 0.001` is the least noisy alone."""
    validation: HeldOut | None = None
    """Filter of held-out pictures, in place of `data.where`, or a share of all, as 0.1; their loss is reported."""
    workers: int = Field(default=1, ge=0)
    """Processes that decode pictures ahead."""


class NoisyTowerObjective(Objective, Generic[N]):
    """A network of noisy latents beside a frozen model; exports config.json and model.safetensors."""

    data_type = DataConfig
    trains: ClassVar[str]
    """The network in errors, with its article: "a classifier"."""
    reads_captions: ClassVar[bool]

    def __init__(self, settings: TowerSettings, data: DataConfig, run: Any) -> None:
        """Read the model and the pictures; a subclass builds the network, and gives it to `train`."""
        self.run = run
        refuse_unused(data, self.trains, captions=self.reads_captions)
        if run.gradient_checkpointing:
            raise ConfigError(f"gradient_checkpointing: {self.trains} is too small to gain from it; leave it out")
        self.parts = load_model(settings.model, torch.float32)
        self.data, self.held_out = open_pictures(data, settings.validation, run.seed, run.batch_size)
        check_sizes(self.data, self.parts.autoencoder.factor)
        warn_of_unused_masks(self.data)
        alike = torch.ones(self.parts.schedule.num_train_timesteps)
        times = KeyedTimes(settings.times, alike, run.seed, run.batch_size)
        self.noisy = NoisyLatents(self.parts, self.data, times, run.seed)
        self.workers = settings.workers

    def train(self, name: str, network: N, player: Player, **frozen: nn.Module) -> None:
        """Train `network`, called `name` in checkpoints, by the losses of `player`; nothing in `frozen` is trained."""
        self.network = network
        self.players, self.ema_modules = {name: player}, {name: network}
        self.frozen = frozen
        for module in frozen.values():
            module.eval().requires_grad_(False)

    def prepare(self, accelerator: "Accelerator", dtype: torch.dtype) -> None:
        """Move the parts, then encode the pictures."""
        for module in self.frozen.values():
            place(module, accelerator.device, dtype)
        self.network.to(accelerator.device, dtype)
        self.noisy.fill(Sharing.between(accelerator))

    def batches(self, numbers: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """Yield batches; without pixels once latents are cached."""
        yield from batches(self.data, numbers, self.workers, pixels=not self.noisy.cached)

    def export(self, folder: Path, *, averaged: bool) -> None:
        """Write config.json and model.safetensors, float32."""
        save_tower(self.network, self.parts, folder)

    def pass_samples(self) -> int:
        """Return the sample numbers of a pass."""
        return self.data.pass_length
