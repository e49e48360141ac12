"""A model as a diffusers folder: unet/, vae/, text_encoder/, tokenizer/, scheduler/ and model_index.json."""

import contextlib
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.files.atomic import replacing_folder
from latent_diffusion.checkpoint.files.json_file import read_json, write_json
from latent_diffusion.checkpoint.files.weights import Network, Weights
from latent_diffusion.checkpoint.folder.network_config import (
    autoencoder_values,
    diffusers_version,
    read_autoencoder_config,
    read_unet_config,
    unet_values,
)
from latent_diffusion.checkpoint.folder.network_weights import load_weights, open_weights, save_weights
from latent_diffusion.checkpoint.folder.pipeline_index import INDEX, PARTS, index_values, read_index, scheduler_made
from latent_diffusion.checkpoint.folder.plan import ChooseDtype, ModelPlan, Tower, assemble
from latent_diffusion.checkpoint.folder.scheduler_config import write_schedule
from latent_diffusion.checkpoint.folder.text_folder import (
    ENDINGS,
    open_text_weights,
    plan_text_model,
    save_text_encoder,
)
from latent_diffusion.checkpoint.folder.tokenizer_folder import load_tokenizer
from latent_diffusion.checkpoint.prompt_forms import FORMS, NAMES, read_prompt_forms, write_prompt_forms
from latent_diffusion.errors import CheckpointError, ResourceError, warn
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

TRAINING = "training.json"  # which run made the model


def load_folder(
    path: Path | str,
    dtype: torch.dtype | ChooseDtype | None = torch.float32,
    *,
    prediction_type: str | None = None,
    with_vae: Callable[[ModelPlan], ModelPlan] | None = None,
    left_out: Collection[str] = (),
) -> Components:
    """Read a model; its networks are on the CPU, in evaluation mode. Nothing is looked up elsewhere.

    Args:
        path: the folder.
        dtype: of every part; or what chooses the U-Net's, the others being float32; None keeps each tensor's own.
        prediction_type: meaning of the U-Net's output, for a folder that states it wrongly.
        with_vae: returns the plan with another autoencoder.
        left_out: parts that stay on the meta device, without weights: "unet", "vae", "text_encoder", "text_encoder_2".

    Raises:
        CheckpointError: a file is missing, damaged or does not fit; the message names it.
    """
    path = Path(path)
    plan = plan_folder(path)
    for note in plan.notes:
        warn(f"{path}: {note}")

    def weights(part: str, network: nn.Module) -> Weights:
        return open_text_weights(path / part) if part.startswith("text") else open_weights(path / part)

    plan = plan.predicting(prediction_type)
    components = assemble(plan if with_vae is None else with_vae(plan), path, weights, dtype, left_out)
    return replace(components, prompt_forms=read_prompt_forms(path))


def plan_folder(path: Path) -> ModelPlan:
    """Return what the JSON files of a folder say its model is.

    Raises:
        CheckpointError: a file is missing, damaged, or has an unsupported value; the message names it.
    """
    index = read_index(path / INDEX)
    scheduler = path / "scheduler" / "scheduler_config.json"
    made, notes = scheduler_made(index, read_json(scheduler))
    towers = []
    for tower in index.towers:
        part, tokenizer = f"text_encoder{ENDINGS[tower]}", load_tokenizer(path / f"tokenizer{ENDINGS[tower]}")
        config = path / part / "config.json"
        model = plan_text_model(read_json(config), str(config), projection=bool(tower))
        towers.append(Tower(part, model, tokenizer, index.xl))
    return ModelPlan(
        read_unet_config(path / "unet" / "config.json"),
        read_autoencoder_config(path / "vae" / "config.json"),
        tuple(towers),
        made,
        str(scheduler),
        path.resolve().name,
        (*index.notes, *notes),
        index.zeros_for_empty_prompt,
    )


def save_folder(components: Components, path: Path | str, dtype: torch.dtype | None = None) -> None:
    """Write a model for us and for every tool that reads diffusers folders; `dtype` None keeps the weights' own.

    The folder is there whole or not at all. An older model in it is replaced in one step, with all its parts, prompt
    forms and variants; files that are no part of a model stay.

    Raises:
        ResourceError: the folder cannot be written; an older model is as it was.
    """
    path = Path(path)
    config = write_schedule(components.schedule, components.prediction, components.scheduler_config)
    try:
        with replacing_folder(path, _no_part_of_a_model) as folder:
            (folder / "scheduler").mkdir()
            write_json(folder / "scheduler" / "scheduler_config.json", config)
            save_unet(components.unet, folder / "unet", dtype)
            save_autoencoder(components.autoencoder, folder / "vae", dtype)
            for tower in components.text_encoder.towers:
                save_text_encoder(tower, folder, dtype)
            if components.prompt_forms is not None:
                write_prompt_forms(components.prompt_forms, folder)
            write_json(folder / INDEX, index_values(components, config["_class_name"], diffusers_version()))
    except ResourceError:
        raise
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error}") from None


def _no_part_of_a_model(folder: Path) -> list[Path]:
    """Return what a folder holds beside a model: a readme, pictures, another program's files."""
    parts = {INDEX, FORMS, NAMES, TRAINING, *PARTS}
    if (folder / INDEX).is_file():
        with contextlib.suppress(CheckpointError):  # a damaged index is replaced too
            parts |= {name for name, value in read_json(folder / INDEX).items() if isinstance(value, list)}
    return [path for path in folder.iterdir() if path.name not in parts]


def load_unet(folder: Path | str, dtype: torch.dtype = torch.float32) -> UNet:
    """Read a U-Net from its own folder; see `_load`."""
    return _load(UNet, read_unet_config, Path(folder), dtype)


def save_unet(model: UNet, folder: Path | str, dtype: torch.dtype | None = None) -> None:
    """Write a U-Net to its own folder; `dtype` None keeps the weights' own."""
    save_weights(model, Path(folder), dtype)
    write_json(Path(folder) / "config.json", unet_values(model.config))


def load_autoencoder(folder: Path | str, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """Read an autoencoder from its own folder; see `_load`."""
    return _load(AutoencoderKL, read_autoencoder_config, Path(folder), dtype)


def _load(kind: Callable[[Any], Network], read: Callable[[Path], Any], folder: Path, dtype: torch.dtype) -> Network:
    """Read a network from its own folder (config.json and weights); on the CPU, in evaluation mode.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit; the message names it.
    """
    config = read(folder / "config.json")
    with torch.device("meta"):
        model = kind(config)
    return load_weights(model, folder, dtype)


def save_autoencoder(model: AutoencoderKL, folder: Path | str, dtype: torch.dtype | None = None) -> None:
    """Write an autoencoder to its own folder; `dtype` None keeps the weights' own."""
    save_weights(model, Path(folder), dtype)
    write_json(Path(folder) / "config.json", autoencoder_values(model.config))
