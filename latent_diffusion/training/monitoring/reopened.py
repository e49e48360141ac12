"""Results read back from the disk: what the files give is compared with what was trained, in a forward pass.

An adapter is read by this package and, if peft is installed, by diffusers; a model by this package.
"""

import importlib.util
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latent_diffusion.adapters.forms import Update
from latent_diffusion.adapters.lora_file import read_lora
from latent_diffusion.adapters.merge import changed_weight
from latent_diffusion.adapters.model_parts import parts_of, tower_names, with_parts
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.folder.diffusers_folder import load_folder
from latent_diffusion.checkpoint.to_diffusers import to_diffusers
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.errors import CheckpointError
from latent_diffusion.models.text_encoder import TextEncoder
from latent_diffusion.nn.low_rank import run
from latent_diffusion.nn.shared_copy import shared_copy
from latent_diffusion.training.losses.conditions import whole_picture
from latent_diffusion.training.networks.frozen_weights import each_in_float32, in_float32, named_float32

__all__ = ["BOUNDS", "check_adapter", "check_agreement", "check_in_diffusers", "check_model"]

logger = logging.getLogger(__name__)

BOUNDS = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest difference of an output, of its largest value, by the number format of the file."""

ON_GPU = 1e-2  # bound where the trained model is on a GPU and the one that is read on the CPU: TF32
CELLS = 8  # side of the latents that are computed
PROMPTS = ("a photograph of a cat", "")


def check_agreement(place: Path, reader: str, outputs: Mapping[str, tuple[Tensor, Tensor]], bound: float) -> None:
    """Compare pairs of what was trained and what was read, by name.

    Raises:
        CheckpointError: a pair differs by more than `bound` of the largest trained value.
    """
    for name, (wanted, found) in outputs.items():
        wanted, found = wanted.double().cpu(), found.double().cpu()
        off = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
        if not off <= bound:
            raise CheckpointError(
                f"{place}: read back by {reader}, the output of {name} differs from the trained one by {off:.2g} of "
                f"its largest value; at most {bound:g} is rounding"
            )


@torch.no_grad()
def check_model(folder: Path, trained: Components, export_dtype: str) -> None:
    """Open a model's folder and compare text states, U-Net and decoder.

    Raises:
        CheckpointError: the folder cannot be opened, or an output differs.
    """
    read = load_folder(folder, torch.float32)
    like = trained.unet.conv_in.weight
    bound = max(BOUNDS[export_dtype], 0.0 if like.device.type == "cpu" else ON_GPU)
    cond = _condition(trained)
    with each_in_float32(trained.unet):
        wanted = outputs(trained, cond) | {"vae": _decoded(trained)}
    found = outputs(read, cond.to("cpu", torch.float32)) | {"vae": _decoded(read)}
    check_agreement(folder, "latent_diffusion", {name: (wanted[name], found[name]) for name in wanted}, bound)


@torch.no_grad()
def check_adapter(
    file: Path, base: Components, trained: Components, changes: Mapping[str, Mapping[str, nn.Module]], bound: float
) -> None:
    """Read an adapter's file for `base` and compare each changed layer, text states and the U-Net.

    Each changed weight is formed when its layer computes, and dropped then: no two are in memory at once.

    Raises:
        CheckpointError: the file cannot be read, or a layer or an output differs.
    """
    read = read_lora(file, base)
    networks = {part: _changed_in_turn(net, read.updates.get(part, {})) for part, net in parts_of(base).items()}
    draw = torch.Generator().manual_seed(0)
    ours = parts_of(trained)
    layers: dict[str, tuple[Tensor, Tensor]] = {}
    with each_in_float32(*ours.values(), *networks.values()):
        for part, of_part in changes.items():
            for path in of_part:
                layer: Any = ours[part].get_submodule(path)
                x = _input(layer.weight, draw)
                layers[f"{part}.{path}"] = layer(x), networks[part].get_submodule(path)(x)
        check_agreement(file, "latent_diffusion", layers, bound)
        cond = _condition(trained)
        wanted, found = outputs(trained, cond), outputs(with_parts(base, networks), cond)
    check_agreement(file, "latent_diffusion", {name: (wanted[name], found[name]) for name in wanted}, bound)


class _Changed(nn.Module):
    """A layer with the change that was read from a file: its whole weight lasts for one call."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, update: Update) -> None:
        super().__init__()
        self.layer, self.update = layer, update

    def forward(self, x: Tensor) -> Tensor:
        with in_float32(self.layer):
            return run(self.layer, x, changed_weight(self.layer.weight, self.update))

    @property
    def weight(self) -> Tensor:
        """The weight without the change: its dtype, device and shape are those of the layer."""
        return self.layer.weight


def _changed_in_turn(network: nn.Module, updates: Mapping[str, Update]) -> nn.Module:
    """Return `network` with changes of its layers' weights; this package writes no others."""
    twin = shared_copy(network)
    for path, update in updates.items():
        layer: Any = twin.get_submodule(path)
        twin.set_submodule(path, _Changed(layer, update))
    return twin


def _input(weight: Tensor, draw: torch.Generator) -> Tensor:
    """Return a small drawn input of the layer with this weight."""
    shape = (2, 3, weight.shape[1]) if weight.ndim == 2 else (2, weight.shape[1], CELLS, CELLS)
    return torch.randn(*shape, generator=draw).to(weight.device, torch.promote_types(weight.dtype, torch.float32))


@torch.no_grad()
def check_in_diffusers(file: Path, base: Components, trained: Components, bound: float) -> bool:
    """Let diffusers load an adapter's file and compare text states and the U-Net.

    Returns:
        False where it cannot be done: peft is not installed, or one of the libraries refuses the release of another.

    Raises:
        CheckpointError: diffusers cannot load the file, or an output differs.
    """
    if importlib.util.find_spec("peft") is None:
        logger.info("%s: not compared in diffusers, which needs peft (pip install peft)", file.name)
        return False
    pipe: Any = to_diffusers(base)
    try:
        with _quiet("diffusers", "peft"), named_float32(pipe.unet):
            pipe.load_lora_weights(file.parent, weight_name=file.name, local_files_only=True)
    except ImportError as fault:
        logger.warning("%s: not compared in diffusers, whose libraries do not fit together: %s", file.name, fault)
        return False
    except Exception as fault:
        raise CheckpointError(f"{file}: diffusers cannot load it: {type(fault).__name__}: {fault}") from fault
    cond = _condition(trained)
    x, t = _noisy(trained)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name, tower in tower_names(trained).items():
        theirs = TextEncoder(getattr(pipe, name), tower_names(base)[name].tokenizer, penultimate=tower.penultimate)
        ids = tower.tokenize(PROMPTS)
        pairs[name] = tower.run(ids).states, theirs.run(ids).states
    more = {} if cond.pooled is None else {"text_embeds": cond.pooled, "time_ids": cond.size_ids}
    their_x = x if cond.concat is None else torch.cat([x, cond.concat], dim=1)
    with each_in_float32(trained.unet, pipe.unet):
        sample = pipe.unet(their_x, t, encoder_hidden_states=cond.context, added_cond_kwargs=more).sample
        pairs["unet"] = outputs(trained, cond)["unet"], sample
    check_agreement(file, "diffusers", pairs, bound)
    return True


@contextmanager
def _quiet(*libraries: str) -> Iterator[None]:
    """Keep libraries from printing bars and notes of parts that an adapter leaves as they are."""
    from transformers.utils import logging as bars

    loggers = [logging.getLogger(library) for library in libraries]
    levels, shown = [one.level for one in loggers], bars.is_progress_bar_enabled()
    for one in loggers:
        one.setLevel(logging.ERROR)
    bars.disable_progress_bar()
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
        if shown:
            bars.enable_progress_bar()


def outputs(model: Components, cond: Conditioning) -> dict[str, Tensor]:
    """Return the text states of each tower and the U-Net's output for `cond`."""
    x, t = _noisy(model)
    states = {name: tower.run(tower.tokenize(PROMPTS)).states for name, tower in tower_names(model).items()}
    return states | {"unet": model.unet(x, t, model.unet.project(cond))}


def _noisy(model: Components) -> tuple[Tensor, Tensor]:
    like = model.unet.conv_in.weight
    shape = (len(PROMPTS), model.autoencoder.config.latent_channels, CELLS, CELLS)
    last = model.schedule.num_train_timesteps
    t = torch.tensor([last // 3, last // 2], dtype=torch.float32, device=like.device)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(like), t


def _condition(model: Components) -> Conditioning:
    """Return the condition of `PROMPTS` in the U-Net's dtype."""
    like = model.unet.conv_in.weight
    cond = model.text_encoder(list(PROMPTS)).to(like.device)
    whole = whole_picture(model, cond, CELLS * model.autoencoder.factor)
    rows = {
        name: None if value is None else value.expand(len(PROMPTS), *value.shape[1:])
        for name, value in (("size_ids", whole.size_ids), ("concat", whole.concat))
    }
    return replace(whole, **rows).to(dtype=like.dtype)


def _decoded(model: Components) -> Tensor:
    """Return what the autoencoder decodes of a fixed latent."""
    like = next(model.autoencoder.parameters())
    shape = (1, model.autoencoder.config.latent_channels, CELLS, CELLS)
    return model.autoencoder.to_images(torch.randn(*shape, generator=torch.Generator().manual_seed(2)).to(like))
