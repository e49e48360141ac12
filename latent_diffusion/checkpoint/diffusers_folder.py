"""A model as a diffusers folder: unet/, vae/, text_encoder/, tokenizer/, scheduler/ and model_index.json."""

from pathlib import Path
from typing import Any

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
from latent_diffusion.checkpoint.scheduler_config import read_schedule, write_schedule
from latent_diffusion.checkpoint.text_folder import load_text_encoder, save_text_encoder
from latent_diffusion.errors import CheckpointError, ResourceError
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.unet import UNet

__all__ = [
    "load_autoencoder",
    "load_folder",
    "load_unet",
    "save_autoencoder",
    "save_folder",
    "save_unet",
]

INDEX = "model_index.json"
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
PARTS = {
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
ABSENT = {part: [None, None] for part in ("feature_extractor", "image_encoder", "safety_checker")}


def load_folder(path: Path | str, dtype: torch.dtype = torch.float32) -> Components:
    """Read a model; its networks are on the CPU, in `dtype`, in evaluation mode. Nothing is looked up elsewhere.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit; the message names it.
    """
    path = Path(path)
    check_index(path / INDEX)
    file = path / "scheduler" / "scheduler_config.json"
    sampler = read_json(file)
    try:
        schedule, prediction = read_schedule(sampler)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    unet = load_unet(path / "unet", dtype)
    autoencoder = load_autoencoder(path / "vae", dtype)
    text_encoder = load_text_encoder(path, dtype)
    width, wanted = text_encoder.config.hidden_size, unet.config.cross_attention_dim
    if width != wanted:
        raise CheckpointError(f"{path}: text states have {width} channels, the U-Net's cross_attention_dim is {wanted}")
    if unet.config.out_channels != autoencoder.config.latent_channels:
        raise CheckpointError(
            f"{path}: the U-Net has {unet.config.out_channels} output channels, "
            f"the autoencoder's latents have {autoencoder.config.latent_channels}"
        )
    return Components(unet, autoencoder, text_encoder, schedule, prediction, sampler, path.resolve().name)


def save_folder(components: Components, path: Path | str, dtype: torch.dtype | None = None) -> None:
    """Write a model for us and for every tool that reads diffusers folders; `dtype` None keeps the weights' own.

    Raises:
        ResourceError: the folder cannot be written.
    """
    path = Path(path)
    config = write_schedule(components.schedule, components.prediction, components.scheduler_config)
    index: dict[str, Any] = {"scheduler": ["diffusers", config["_class_name"]], **PARTS, **ABSENT}
    try:
        (path / "scheduler").mkdir(parents=True, exist_ok=True)
        write_json(path / "scheduler" / "scheduler_config.json", config)
        save_unet(components.unet, path / "unet", dtype)
        save_autoencoder(components.autoencoder, path / "vae", dtype)
        save_text_encoder(components.text_encoder, path, dtype)
        head = {"_class_name": PIPELINES[0], "_diffusers_version": diffusers_version()}
        write_json(path / INDEX, {**head, **dict(sorted(index.items())), "requires_safety_checker": False})
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


def check_index(file: Path) -> None:
    """Check what kind of model a folder holds. Class names are compared, never imported.

    Raises:
        CheckpointError: another kind of pipeline, or a part of another class.
    """
    index = read_json(file)
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise CheckpointError(f"{file}: _class_name is {kind!r}; supported are {', '.join(PIPELINES)}")
    for part, expected in PARTS.items():
        found = index.get(part)
        # a fast tokenizer is the same tokenizer
        plain = [str(word).removesuffix("Fast") for word in found] if isinstance(found, list) else found
        if plain != expected:
            raise CheckpointError(f"{file}: {part} is {found}; only {expected} is supported")
