"""A model as a diffusers folder: unet/, vae/, text_encoder/, tokenizer/, scheduler/ and model_index.json."""

import warnings
from pathlib import Path

import torch

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.json_file import read_json, write_json
from latent_diffusion.checkpoint.network_config import (
    autoencoder_values,
    diffusers_version,
    read_autoencoder_config,
    read_unet_config,
    unet_values,
)
from latent_diffusion.checkpoint.network_weights import load_weights, save_weights
from latent_diffusion.checkpoint.pipeline_index import INDEX, index_values, read_index
from latent_diffusion.checkpoint.scheduler_config import read_schedule, write_schedule
from latent_diffusion.checkpoint.text_folder import load_text_encoder, save_text_encoder
from latent_diffusion.errors import CheckpointError, LatentDiffusionWarning, ResourceError
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.text_encoder import TextEncoders
from latent_diffusion.models.unet import UNet

__all__ = [
    "load_autoencoder",
    "load_folder",
    "load_unet",
    "save_autoencoder",
    "save_folder",
    "save_unet",
]


def load_folder(path: Path | str, dtype: torch.dtype = torch.float32) -> Components:
    """Read a model; its networks are on the CPU, in `dtype`, in evaluation mode. Nothing is looked up elsewhere.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit; the message names it.
    """
    path = Path(path)
    index = read_index(path / INDEX)
    file = path / "scheduler" / "scheduler_config.json"
    sampler = read_json(file)
    try:
        schedule, prediction = read_schedule(sampler)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    unet = load_unet(path / "unet", dtype)
    autoencoder = load_autoencoder(path / "vae", dtype)
    towers = [load_text_encoder(path, dtype, tower=tower, penultimate=index.xl) for tower in index.towers]
    for note in index.notes:
        warnings.warn(f"{path}: {note}", LatentDiffusionWarning, stacklevel=2)
    components = Components(
        unet,
        autoencoder,
        towers[0] if len(towers) == 1 else TextEncoders(*towers),
        schedule,
        prediction,
        sampler,
        path.resolve().name,
        notes=index.notes,
        zeros_for_empty_prompt=index.zeros_for_empty_prompt,
    )
    components.check(path)
    return components


def save_folder(components: Components, path: Path | str, dtype: torch.dtype | None = None) -> None:
    """Write a model for us and for every tool that reads diffusers folders; `dtype` None keeps the weights' own.

    Raises:
        ResourceError: the folder cannot be written.
    """
    path = Path(path)
    config = write_schedule(components.schedule, components.prediction, components.scheduler_config)
    try:
        (path / "scheduler").mkdir(parents=True, exist_ok=True)
        write_json(path / "scheduler" / "scheduler_config.json", config)
        save_unet(components.unet, path / "unet", dtype)
        save_autoencoder(components.autoencoder, path / "vae", dtype)
        for tower in components.text_encoder.towers:
            save_text_encoder(tower, path, dtype)
        write_json(path / INDEX, index_values(components, config["_class_name"], diffusers_version()))
    except ResourceError:
        raise
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error}") from None


def load_unet(folder: Path | str, dtype: torch.dtype = torch.float32) -> UNet:
    """Read a U-Net from its own folder (config.json and weights).

    Raises:
        CheckpointError: a file is missing, damaged or does not fit; the message names it.
    """
    config = read_unet_config(Path(folder) / "config.json")
    with torch.device("meta"):
        model = UNet(config)
    load_weights(model, Path(folder), dtype)
    return model


def save_unet(model: UNet, folder: Path | str, dtype: torch.dtype | None = None) -> None:
    """Write a U-Net to its own folder; `dtype` None keeps the weights' own."""
    save_weights(model, Path(folder), dtype)
    write_json(Path(folder) / "config.json", unet_values(model.config))


def load_autoencoder(folder: Path | str, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """Read an autoencoder from its own folder (config.json and weights).

    Raises:
        CheckpointError: a file is missing, damaged or does not fit; the message names it.
    """
    config = read_autoencoder_config(Path(folder) / "config.json")
    with torch.device("meta"):
        model = AutoencoderKL(config)
    load_weights(model, Path(folder), dtype)
    return model


def save_autoencoder(model: AutoencoderKL, folder: Path | str, dtype: torch.dtype | None = None) -> None:
    """Write an autoencoder to its own folder; `dtype` None keeps the weights' own."""
    save_weights(model, Path(folder), dtype)
    write_json(Path(folder) / "config.json", autoencoder_values(model.config))
