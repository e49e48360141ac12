"""A network that reads noisy latents in its folder: config.json and model.safetensors.

config.json has the sizes of the network, and what it was trained on: the noise law (in the fields of a diffusers
scheduler) and the scale of the latents. A model with others is refused.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.files.json_file import read_json, write_json
from latent_diffusion.checkpoint.files.safetensors_file import write_tensors
from latent_diffusion.checkpoint.files.weights import fill
from latent_diffusion.checkpoint.folder.network_weights import open_weights
from latent_diffusion.checkpoint.folder.scheduler_config import read_schedule, write_schedule
from latent_diffusion.diffusion.level import NoiseSchedule
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.models.latent_tower import LatentTower

__all__ = ["LARGEST", "StoredTower", "load_tower", "save_tower", "tower_sizes"]

STEM = "model"
LARGEST = 4096  # channels, blocks, or classes of a field that are built; more than any such network has
MOST_SIZES = 8  # sizes of latents
N = TypeVar("N", bound=LatentTower)


@dataclass(frozen=True)
class StoredTower(Generic[N]):
    """A network and what it reads."""

    network: N
    schedule: NoiseSchedule
    scaling_factor: float
    shift_factor: float

    def check_fit(self, parts: Components, folder: str) -> None:
        """Refuse to read the latents of a model that has others.

        Raises:
            ConfigError: other channels, another scale or another noise law.
        """
        ours, theirs = parts.autoencoder.config, self.network.config
        pairs = {
            "channels": (ours.latent_channels, theirs.in_channels),
            "scaling factor": (ours.scaling_factor, self.scaling_factor),
            "shift factor": (ours.shift_factor or 0.0, self.shift_factor),
            "noise law": (parts.schedule, self.schedule),
        }
        for what, (has, read) in pairs.items():
            if has != read:
                raise ConfigError(
                    f"{folder}: trained on latents with {what} {read}, but those of {parts.name} have {has}; "
                    f"train one with objective.model={parts.name}"
                )


def save_tower(network: LatentTower, parts: Components, folder: Path) -> None:
    """Write a network that reads the latents of `parts`, float32."""
    values = asdict(network.config) | {
        "_class_name": type(network).__name__,
        "scaling_factor": parts.autoencoder.config.scaling_factor,
        "shift_factor": parts.autoencoder.config.shift_factor or 0.0,
        "scheduler": write_schedule(parts.schedule, parts.prediction),
        "model": parts.name,
    }
    write_json(folder / "config.json", values)
    tensors = {name: tensor.detach().cpu().float().contiguous() for name, tensor in network.state_dict().items()}
    write_tensors(folder / f"{STEM}.safetensors", tensors)


def load_tower(
    folder: str | os.PathLike[str], kind: type[N], config_of: Callable[[Path, Mapping[str, Any]], Any]
) -> StoredTower[N]:
    """Read a network of class `kind`, float32 on the CPU, evaluation mode, without gradients of its weights.

    Args:
        folder: where it lies.
        kind: its class, whose name is in config.json.
        config_of: (config.json, its values) -> the config that `kind` is built from.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit; the message names it.
    """
    file = Path(folder) / "config.json"
    values = read_json(file)
    if values.get("_class_name") != kind.__name__:
        raise CheckpointError(
            f"{file}: _class_name is {values.get('_class_name')!r:.50}, {kind.__name__!r} was expected"
        )
    try:
        config = config_of(file, values)
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from None
    with torch.device("meta"):
        network = kind(config)
    network = fill(network, open_weights(Path(folder), STEM), torch.float32).requires_grad_(False)
    scheduler = values.get("scheduler")
    if not isinstance(scheduler, dict):
        raise CheckpointError(f"{file}: scheduler is {scheduler!r:.50}, the fields of a noise law were expected")
    try:
        schedule, _ = read_schedule(scheduler)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: scheduler: {error}") from None
    scale, shift = (_number(file, values, name) for name in ("scaling_factor", "shift_factor"))
    return StoredTower(network, schedule, scale, shift)


def tower_sizes(file: Path, values: Mapping[str, Any], *others: str) -> dict[str, Any]:
    """Return the sizes of the tower in config.json, and the integers `others`.

    Raises:
        CheckpointError: one that is missing or cannot be.
    """
    channels = values.get("channels")
    if not isinstance(channels, list) or not 0 < len(channels) <= MOST_SIZES:
        raise CheckpointError(f"{file}: channels is {channels!r:.50}, 1 to {MOST_SIZES} sizes were expected")
    sizes = {name: values.get(name) for name in ("in_channels", "blocks", "groups", *others)}
    for name, value in (*sizes.items(), *(("channels", width) for width in channels)):
        if type(value) is not int or not 1 <= value <= LARGEST:
            raise CheckpointError(f"{file}: {name} is {value!r:.50}; integers from 1 to {LARGEST} are read")
    return {**sizes, "channels": tuple(channels)}


def _number(file: Path, values: Mapping[str, Any], name: str) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise CheckpointError(f"{file}: {name} is {value!r:.50}, a number was expected")
    return float(value)
