"""A tiny autoencoder (TAESD) in its folder: config.json and weights, as diffusers' `AutoencoderTiny` writes them."""

import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from latent_diffusion.checkpoint.files.json_file import read_json
from latent_diffusion.checkpoint.folder.network_weights import load_weights
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.tiny_autoencoder import TinyAutoencoder, TinyAutoencoderConfig

__all__ = ["load_tiny_autoencoder", "open_tiny"]

KIND = "AutoencoderTiny"
FIXED = {"act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2, "shift_factor": 0.0}
LARGEST = 4096  # channels or blocks that are built; more than any model has


def load_tiny_autoencoder(folder: str | os.PathLike[str]) -> TinyAutoencoder:
    """Read a tiny autoencoder, float32 on the CPU, evaluation mode. Nothing is looked up elsewhere.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit; the message names it.
    """
    file = Path(folder) / "config.json"
    config = _config(file, read_json(file))
    with torch.device("meta"):
        model = TinyAutoencoder(config)
    return load_weights(model, Path(folder), torch.float32)


def open_tiny(folder: str | os.PathLike[str], autoencoder: AutoencoderKL) -> TinyAutoencoder:
    """Return the tiny autoencoder in `folder`, float32 on the CPU.

    Raises:
        ConfigError: it is for other latents than those of `autoencoder`.
        CheckpointError: the folder's files are missing or damaged.
    """
    tiny = load_tiny_autoencoder(folder)
    ours, theirs = (autoencoder.config.latent_channels, autoencoder.factor), (tiny.config.latent_channels, tiny.factor)
    if ours != theirs:
        raise ConfigError(
            f"{str(folder)!r} is for latents of {theirs[0]} channels and {theirs[1]} px a cell, "
            f"the model's have {ours[0]} and {ours[1]}"
        )
    return tiny


def _config(file: Path, found: dict[str, Any]) -> TinyAutoencoderConfig:
    if found.get("_class_name", KIND) != KIND:
        raise CheckpointError(f"{file}: _class_name is {found['_class_name']!r}, {KIND!r} was expected")
    for name, value in FIXED.items():
        if found.get(name, value) != value:
            raise CheckpointError(f"{file}: {name} is {found[name]!r}; only {value!r} is supported")
    defaults = asdict(TinyAutoencoderConfig())
    values = {field.name: found.get(field.name, defaults[field.name]) for field in fields(TinyAutoencoderConfig)}
    for name, value in values.items():
        if name != "scaling_factor" and not all(map(_size, value if isinstance(value, list | tuple) else [value])):
            raise CheckpointError(f"{file}: {name} is {value!r}; integers from 1 to {LARGEST} are read")
        if isinstance(value, list | tuple) != isinstance(defaults[name], tuple):
            raise CheckpointError(f"{file}: {name} is {value!r}, of the wrong type")
    scale = values["scaling_factor"]
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise CheckpointError(f"{file}: scaling_factor is {scale!r}; a number above 0 is read")
    try:
        return TinyAutoencoderConfig(**values)
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from None


def _size(value: object) -> bool:
    return type(value) is int and 1 <= value <= LARGEST
