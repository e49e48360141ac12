"""Train the noise schedule at which the variational bound of a model is estimated with the least variance.

    loss = (gamma'(u) e / 2)^2,   e = |noise - noise(x, t, caption)|^2 for each number of x,   u keyed, uniform

Its mean is the variance of the bound's estimate from one level and a constant (`diffusion/learned_schedule.py`). The
model stays as it is. The result is a table: levels in equal parts of the schedule, and lists of times that any sampler
visits (`timesteps`).
Reference: Kingma et al. 2021, arXiv:2107.00630, section 5.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.files.json_file import read_json, write_json
from latent_diffusion.data.batches.folder import DataConfig
from latent_diffusion.data.batches.loader import Batch
from latent_diffusion.diffusion.learned_schedule import ends, mean_square, noise_error, table
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.models.monotone import MonotoneNetwork
from latent_diffusion.training.losses.denoising import Denoising, LossSettings
from latent_diffusion.training.networks.parts import ModelSettings
from latent_diffusion.training.objectives.unet import UNetObjective

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["LearnedScheduleObjective", "LearnedScheduleSettings"]

FILE = "schedule.json"
PARTS = 1000  # of the table of levels
STEPS = (2, 4, 8, 10, 15, 20, 25, 30, 50, 100)  # numbers of steps whose times are written


class LearnedScheduleSettings(ModelSettings):
    """The `objective:` section."""

    width: int = Field(default=32, ge=1)
    """Sigmoids of the monotone network."""
    latent_cache_bytes: int = Field(default=4 * 2**30, ge=0)
    """Keep latents of all pictures in memory if they take at most this."""
    text_cache_bytes: int = Field(default=2 * 2**30, ge=0)
    """Keep text states of all captions in memory if they take at most this; 0: keep none, list no captions."""
    caption_chunks: int = Field(default=3, ge=1)
    """Chunks of 75 tokens that are read of a caption, as in drawing; what is longer is cut and counted."""
    workers: int = Field(default=1, ge=0)
    """Processes that decode pictures ahead."""

    export_dtype: ClassVar[Literal["float32"]] = "float32"
    validation: ClassVar[None] = None
    masked: ClassVar[None] = None
    inpainting: ClassVar[None] = None


class ScheduleVariance(Denoising):
    """A monotone network; the model that it is for is not registered."""

    def __init__(self, parts: Components, trained: Mapping[str, nn.Module], seed: int, batch_size: int) -> None:
        """Take the model and, as `schedule`, the network that is trained."""
        super().__init__(parts, trained, LossSettings(), seed, batch_size)

    @property
    def rising(self) -> MonotoneNetwork:
        """The network that is trained."""
        network = self.get_submodule("schedule")
        assert isinstance(network, MonotoneNetwork), "the objective makes it"
        return network

    def _losses(self, batch: Batch) -> Tensor:
        """Return the squares (B,) of the estimates for pictures whose captions have equally many tokens."""
        x0 = self.latents(batch)
        u = torch.tensor(self.shares(batch.sample), dtype=torch.float64).to(self.rising.slope)

        @torch.no_grad()
        def error(gamma: Tensor) -> Tensor:
            denoise = self.parts[0].denoiser(self.unet, x0.dtype).bind_times(self.condition(batch))
            return noise_error(denoise, self.loss.schedule, x0, self.noise(batch, x0), gamma) / x0[0].numel()

        losses = mean_square(self.rising, u, error)
        return losses if batch.weights is None else losses * batch.weights.to(losses)


class LearnedScheduleObjective(UNetObjective):
    """A model that stays as it is, and the schedule of its noise levels."""

    settings_type = LearnedScheduleSettings
    memory = frozenset({"drop_encoders"})
    shards = False
    sample = frozenset({"every"})
    settings: LearnedScheduleSettings
    player: ScheduleVariance
    schedule: MonotoneNetwork

    def __init__(self, settings: LearnedScheduleSettings, data: DataConfig, run: Any) -> None:
        """Load the model and read the pictures.

        Raises:
            ConfigError: no model, or one whose noise law ends on pure noise.
        """
        if settings.init is None:
            raise ConfigError("objective.init: give the model whose noise schedule is learned")
        super().__init__(settings, data, run)  # pyright: ignore[reportArgumentType]  # what is absent is a constant None

    def choose(self, parts: Components) -> tuple[Components, dict[str, nn.Module]]:
        """Return the model, of which nothing is trained, and the monotone network."""
        for network in (parts.unet, parts.text_encoder):
            network.requires_grad_(False)
        self.schedule = MonotoneNetwork(*ends(parts.schedule), width=self.settings.width)
        return parts, {"schedule": self.schedule}

    def denoising(self, trained: Mapping[str, nn.Module]) -> ScheduleVariance:
        """Return the player."""
        return ScheduleVariance(self.components, trained, self.run.seed, self.run.batch_size)

    def prepare(self, accelerator: "Accelerator", dtype: torch.dtype) -> None:
        """Move the parts and the network, then encode pictures and captions."""
        super().prepare(accelerator, dtype)
        self.schedule.to(accelerator.device, dtype)

    def found(self) -> dict[str, Any]:
        """Return the schedule as tables: log-SNR and time at equal parts of it, and the times of some steps."""
        law, network = self.components.schedule, copy.deepcopy(self.schedule).cpu().double()
        with torch.no_grad():
            gamma, _ = network(torch.linspace(0, 1, PARTS + 1, dtype=torch.float64))
        return {
            "model": self.components.name,
            "log_snr": (-gamma).tolist(),
            "timesteps": {
                str(steps): table(network, law, steps) for steps in STEPS if steps <= law.num_train_timesteps
            },
        }

    def export(self, folder: Path, *, averaged: bool) -> None:
        """Write the tables."""
        write_json(folder / FILE, self.found())

    def verify(self, folder: Path) -> None:
        """Read the tables back and compare them with the schedule.

        Raises:
            CheckpointError: they are not those of the schedule.
        """
        if read_json(folder / FILE) != self.found():
            raise CheckpointError(f"{folder / FILE}: the tables are not those of the trained schedule; train again")
