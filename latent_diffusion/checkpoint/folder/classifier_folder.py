"""A classifier of noisy latents in its folder: config.json and model.safetensors.

config.json has the classes and sizes of the network, and what it was trained on: the noise law (in the fields of a
diffusers scheduler) and the scale of the latents. A model with others is refused.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.files.json_file import read_json, write_json
from latent_diffusion.checkpoint.files.safetensors_file import write_tensors
from latent_diffusion.checkpoint.files.weights import fill
from latent_diffusion.checkpoint.folder.network_weights import open_weights
from latent_diffusion.checkpoint.folder.scheduler_config import read_schedule, write_schedule
from latent_diffusion.diffusion.level import NoiseSchedule
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.models.latent_classifier import LatentClassifier, LatentClassifierConfig

__all__ = ["StoredClassifier", "load_classifier", "save_classifier"]

KIND = "LatentClassifier"
STEM = "model"
LARGEST = 4096  # channels, blocks, or classes of a field that are built; more than any classifier has
MOST_SIZES = 8  # sizes of latents


@dataclass(frozen=True)
class StoredClassifier:
    """A classifier and what it reads."""

    network: LatentClassifier
    schedule: NoiseSchedule
    scaling_factor: float
    shift_factor: float

    def check_fit(self, parts: Components, folder: str) -> None:
        """Refuse to classify the latents of a model that has others.

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
                    f"{folder}: a classifier of latents with {what} {read}, but those of {parts.name} have {has}; "
                    f"train one with objective.model={parts.name}"
                )


def save_classifier(network: LatentClassifier, parts: Components, folder: Path) -> None:
    """Write a classifier of the latents of `parts`, float32."""
    values = asdict(network.config) | {
        "_class_name": KIND,
        "fields": {name: list(classes) for name, classes in network.config.fields.items()},
        "channels": list(network.config.channels),
        "scaling_factor": parts.autoencoder.config.scaling_factor,
        "shift_factor": parts.autoencoder.config.shift_factor or 0.0,
        "scheduler": write_schedule(parts.schedule, parts.prediction),
        "model": parts.name,
    }
    write_json(folder / "config.json", values)
    tensors = {name: tensor.detach().cpu().float().contiguous() for name, tensor in network.state_dict().items()}
    write_tensors(folder / f"{STEM}.safetensors", tensors)


def load_classifier(folder: str | os.PathLike[str]) -> StoredClassifier:
    """Read a classifier, float32 on the CPU, evaluation mode, without gradients of its weights.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit; the message names it.
    """
    file = Path(folder) / "config.json"
    values = read_json(file)
    if values.get("_class_name") != KIND:
        raise CheckpointError(f"{file}: _class_name is {values.get('_class_name')!r:.50}, {KIND!r} was expected")
    config = _config(file, values)
    with torch.device("meta"):
        network = LatentClassifier(config)
    network = fill(network, open_weights(Path(folder), STEM), torch.float32).requires_grad_(False)
    scheduler = values.get("scheduler")
    if not isinstance(scheduler, dict):
        raise CheckpointError(f"{file}: scheduler is {scheduler!r:.50}, the fields of a noise law were expected")
    try:
        schedule, _ = read_schedule(scheduler)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: scheduler: {error}") from None
    scale, shift = (_number(file, values, name) for name in ("scaling_factor", "shift_factor"))
    return StoredClassifier(network, schedule, scale, shift)


def _config(file: Path, values: Mapping[str, Any]) -> LatentClassifierConfig:
    known, channels = values.get("fields"), values.get("channels")
    if not isinstance(known, dict) or not all(
        isinstance(names, list) and len(names) <= LARGEST and all(isinstance(name, str) for name in names)
        for names in known.values()
    ):
        raise CheckpointError(f"{file}: fields is {known!r:.50}, lists of classes by name were expected")
    if not isinstance(channels, list) or not 0 < len(channels) <= MOST_SIZES:
        raise CheckpointError(f"{file}: channels is {channels!r:.50}, 1 to {MOST_SIZES} sizes were expected")
    sizes = {name: values.get(name) for name in ("in_channels", "blocks", "groups")}
    for name, value in (*sizes.items(), *(("channels", width) for width in channels)):
        if type(value) is not int or not 1 <= value <= LARGEST:
            raise CheckpointError(f"{file}: {name} is {value!r:.50}; integers from 1 to {LARGEST} are read")
    try:
        classes = {name: tuple(labels) for name, labels in known.items()}
        return LatentClassifierConfig(fields=classes, channels=tuple(channels), **sizes)  # pyright: ignore[reportArgumentType]
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from None


def _number(file: Path, values: Mapping[str, Any], name: str) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise CheckpointError(f"{file}: {name} is {value!r:.50}, a number was expected")
    return float(value)
