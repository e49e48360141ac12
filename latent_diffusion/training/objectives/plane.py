"""Train a process on points in the plane, whose law is known: diffusion, critically damped Langevin, or a GAN of steps.

The points are a grid of Gaussians, drawn anew for every sample number. What the processes share is the network's size,
the data and the trainer, so they can be compared; `experiments/science/processes.py` does.
The players are `training/losses/points/diffusions.py` and `training/losses/points/denoising_gan.py`.
Reference: Xiao et al. 2022, arXiv:2112.07804, section 5.2 (25 Gaussians).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from latent_diffusion.checkpoint.files.json_file import read_json, write_json
from latent_diffusion.checkpoint.files.safetensors_file import write_tensors
from latent_diffusion.checkpoint.files.weights import fill
from latent_diffusion.checkpoint.folder.network_weights import open_weights
from latent_diffusion.config import Section, parse_section
from latent_diffusion.diffusion.critically_damped import END, Damped
from latent_diffusion.diffusion.loss import DiffusionLoss
from latent_diffusion.diffusion.prediction import V
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.plane_network import PlaneNetwork
from latent_diffusion.randomness import generator, normal
from latent_diffusion.runtime.precision import place
from latent_diffusion.schedules.linear import LinearSchedule
from latent_diffusion.training.losses.keyed_times import KeyedTimes, TimesSettings
from latent_diffusion.training.losses.points.denoising_gan import (
    DenoisingDiscriminator,
    DenoisingGenerator,
    GanSettings,
    LargeSteps,
)
from latent_diffusion.training.losses.points.diffusions import DampedPlayer, DiffusionPlayer
from latent_diffusion.training.losses.points.latent_score import (
    LatentModel,
    LatentPlayer,
    LatentSettings,
    PriorPlayer,
)
from latent_diffusion.training.monitoring.reopened import BOUNDS, check_agreement
from latent_diffusion.training.networks.weights_digest import weights_digest
from latent_diffusion.training.objective import Objective, Player

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["PlaneObjective", "PlanePoints", "PlaneSettings", "load_plane"]

DIMENSIONS = 2
STEM = "model"


class PlanePoints(Section):
    """The `data:` section: `side` x `side` Gaussians, at even distances around the origin."""

    side: int = Field(default=5, ge=1)
    """Gaussians in a row."""
    distance: float = Field(default=0.7, gt=0)
    """Between the centres of neighbours; with 5 in a row, .7 makes the variance of each coordinate .98 + spread^2."""
    spread: float = Field(default=0.05, gt=0)
    """Deviation of each Gaussian."""

    def centres(self) -> Tensor:
        """Return the centres, float64 (side^2, 2)."""
        places = (torch.arange(self.side, dtype=torch.float64) - (self.side - 1) / 2) * self.distance
        return torch.cartesian_prod(places, places)


class PlaneSettings(Section):
    """The `objective:` section."""

    process: Literal["diffusion", "damped", "gan", "latent"] = "diffusion"
    """diffusion, critically damped Langevin diffusion, a denoising-diffusion GAN, or an autoencoder and its prior."""
    width: int = Field(default=128, ge=1)
    """Width of each network's layers."""
    layers: int = Field(default=3, ge=1)
    """Layers of each network before the last."""
    gan: GanSettings | None = None
    """Settings of the process gan. Keys below."""
    latent: LatentSettings | None = None
    """Settings of the process latent. Keys below."""

    @model_validator(mode="after")
    def _consistent(self) -> "PlaneSettings":
        for name in ("gan", "latent"):
            if getattr(self, name) is not None and self.process != name:
                raise ValueError(f"`{name}` is for the process {name}, and process is {self.process}; leave it out")
        return self

    @property
    def gan_settings(self) -> GanSettings:
        """Return the settings of the process gan, given or not."""
        return self.gan or GanSettings()

    @property
    def latent_settings(self) -> LatentSettings:
        """Return the settings of the process latent, given or not."""
        return self.latent or LatentSettings()


@dataclass(frozen=True)
class Points:
    """Points (B, 2) and the numbers of their samples."""

    sample: tuple[int, ...]
    values: Tensor

    def to(self, device: torch.device) -> "Points":
        """Return the points on `device`."""
        return replace(self, values=self.values.to(device))


def drawing_network(settings: PlaneSettings) -> PlaneNetwork | LatentModel:
    """Return what draws, with weights that are not trained."""
    width, layers = settings.width, settings.layers
    if settings.process == "latent":
        return LatentModel(DIMENSIONS, width, layers, settings.latent_settings.mix)
    if settings.process == "damped":
        return PlaneNetwork(2 * DIMENSIONS, DIMENSIONS, width, layers, END)
    if settings.process == "gan":
        gan = settings.gan_settings
        return PlaneNetwork(DIMENSIONS + gan.latents, DIMENSIONS, width, layers, gan.steps)
    return PlaneNetwork(DIMENSIONS, DIMENSIONS, width, layers, LinearSchedule().num_train_timesteps)


class PlaneObjective(Objective):
    """A process on points; exports the network that draws: config.json and model.safetensors."""

    settings_type = PlaneSettings
    data_type = PlanePoints
    sample = frozenset()

    def __init__(self, settings: PlaneSettings, data: PlanePoints, run: Any) -> None:
        """Build the networks and their players."""
        if run.gradient_checkpointing:
            raise ConfigError("gradient_checkpointing: the networks are too small to gain from it; leave it out")
        self.settings, self.data, self.run = settings, data, run
        self.centres = data.centres()
        self.network = drawing_network(settings)
        latent = settings.latent_settings
        if settings.process == "latent" and latent.init is not None:
            self._go_on(Path(latent.init))
        self.players: dict[str, Player] = self._players(run.seed, run.batch_size)
        self.ema_modules: dict[str, nn.Module] = {"network": self.network}
        self.frozen: dict[str, nn.Module] = {}
        if isinstance(self.network, LatentModel):
            self.ema_modules = dict(self.players)
            idle = {"vae": ["prior"], "prior": ["encoder", "decoder"], "joint": []}[latent.stage]
            self.frozen = {name: self.network.get_submodule(name).requires_grad_(False) for name in idle}

    def _go_on(self, folder: Path) -> None:
        """Take the weights of a model that an earlier stage made.

        Raises:
            ConfigError: it is another process, or of another size.
        """
        read, settings, _ = load_plane(folder)
        sizes = (settings.process, settings.width, settings.layers)
        if sizes != (self.settings.process, self.settings.width, self.settings.layers):
            raise ConfigError(
                f"objective.latent.init: {folder} has process, width and layers {sizes}, and this run others; use those"
            )
        self.network.load_state_dict(read.state_dict())

    def _players(self, seed: int, batch_size: int) -> dict[str, Player]:
        settings = self.settings
        if isinstance(self.network, LatentModel):
            stage, times = settings.latent_settings.stage, KeyedTimes(TimesSettings(), torch.ones(1), seed, batch_size)
            coder = LatentPlayer(self.network, times if stage == "joint" else None, seed)
            prior = PriorPlayer(self.network, times, seed)
            return {"vae": {"coder": coder}, "prior": {"prior": prior}, "joint": {"coder": coder, "prior": prior}}[
                stage
            ]
        if settings.process == "damped":
            return {"damped": DampedPlayer(self.network, Damped(), seed, batch_size)}
        if settings.process == "gan":
            gan = settings.gan_settings
            judge = PlaneNetwork(2 * DIMENSIONS, 1, settings.width, settings.layers, gan.steps)
            process = LargeSteps(gan, seed)
            return {
                "discriminator": DenoisingDiscriminator(judge, self.network, process, gan),
                "generator": DenoisingGenerator(self.network, judge, process),
            }
        return {"diffusion": DiffusionPlayer(self.network, DiffusionLoss(LinearSchedule(), V), seed, batch_size)}

    def prepare(self, accelerator: "Accelerator", dtype: torch.dtype) -> None:
        """Move the networks."""
        for player in self.players.values():
            place(player, accelerator.device, dtype)

    def batches(self, numbers: Iterable[Sequence[int]]) -> Iterator[Points]:
        """Yield points, keyed with the sample numbers."""
        like = next(self.network.parameters())
        for chosen in numbers:
            yield Points(tuple(chosen), torch.stack([self.point(n) for n in chosen]).to(like.dtype))

    def point(self, number: int) -> Tensor:
        """Return the point of a sample number, float64 (2,)."""
        random = generator(self.run.seed, "point", number)
        centre = self.centres[int(random.integers(len(self.centres)))]
        return centre + self.data.spread * torch.from_numpy(random.standard_normal(DIMENSIONS))

    def fingerprint(self) -> dict[str, str]:
        """Return the digest of the weights that the run starts from, where it goes on from others."""
        return {"objective.latent.init": weights_digest(self.network)} if self.settings.latent_settings.init else {}

    def export(self, folder: Path, *, averaged: bool) -> None:
        """Write config.json and model.safetensors."""
        write_json(folder / "config.json", {"objective": self.settings.model_dump(), "data": self.data.model_dump()})
        write_tensors(folder / f"{STEM}.safetensors", self.network.state_dict())

    @torch.no_grad()
    def verify(self, folder: Path) -> None:
        """Open the folder and compare what the network makes of some numbers."""
        read, _, _ = load_plane(folder)
        like = next(self.network.parameters())
        values = normal(0, "verify", range(8), (self.network.inputs,))
        time = torch.linspace(0, 1, 8) * self.network.end
        pair = (self.network(values.to(like), time.to(like.device)), read(values, time))
        check_agreement(folder, "latent_diffusion", {"the network": pair}, BOUNDS["float32"])


def load_plane(folder: Path) -> tuple[PlaneNetwork | LatentModel, PlaneSettings, PlanePoints]:
    """Return the network that draws, float32, with the settings of its process and of its data.

    Raises:
        ConfigError, CheckpointError: the folder has no such network.
    """
    values = read_json(folder / "config.json")
    settings = parse_section(PlaneSettings, values.get("objective", {}), "objective")
    network = fill(drawing_network(settings), open_weights(folder, STEM), torch.float32)
    return network.eval().requires_grad_(False), settings, parse_section(PlanePoints, values.get("data", {}), "data")
