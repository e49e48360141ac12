"""A model in one file, as CompVis and A1111 have it: every part under its prefix, sizes and noise law by convention.

Files of others say what they are by their tensors (`detect`), ours also by their header (`single_header`).
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.files.checkpoint_file import CheckpointFile, open_checkpoint
from latent_diffusion.checkpoint.files.safetensors_file import write_tensors
from latent_diffusion.checkpoint.files.weights import Stored, Weights, some
from latent_diffusion.checkpoint.folder.open_clip_names import TEXT, from_open_clip, to_open_clip
from latent_diffusion.checkpoint.folder.plan import ChooseDtype, ModelPlan, Tower, assemble, on_meta
from latent_diffusion.checkpoint.folder.text_folder import bare
from latent_diffusion.checkpoint.folder.vocabulary import clip_vocabulary
from latent_diffusion.checkpoint.single.autoencoder_file import compvis_autoencoder
from latent_diffusion.checkpoint.single.compvis_names import autoencoder_names, unet_names
from latent_diffusion.checkpoint.single.detect import detect, family_values
from latent_diffusion.checkpoint.single.layout import (
    AUTOENCODER,
    TEXT_EXTRAS,
    UNET,
    TextPlace,
    averaged_name,
    layout,
    strangers,
    text_places,
)
from latent_diffusion.checkpoint.single.single_header import header_of, plan_of
from latent_diffusion.errors import CheckpointError, ConfigError, warn
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.text_config import TextConfig
from latent_diffusion.models.text_encoder import TextEncoder
from latent_diffusion.models.unet import UNet as UNetNetwork

__all__ = ["load_single_file", "plan_single_file", "save_single_file"]

SUFFIX = ".safetensors"
AUTOENCODER_PART = "the autoencoder (first_stage_model)"


def load_single_file(
    path: Path | str,
    dtype: torch.dtype | ChooseDtype | None = torch.float32,
    *,
    family: str | None = None,
    prediction_type: str | None = None,
    averaged: bool = False,
    with_vae: Callable[[ModelPlan], ModelPlan] | None = None,
    left_out: Collection[str] = (),
) -> Components:
    """Read a model; its networks are on the CPU, in evaluation mode. Nothing is looked up elsewhere.

    Args:
        path: a CompVis or A1111 `.safetensors`, or an old `.ckpt`.
        dtype: of every part; or what chooses the U-Net's, the others being float32; None keeps each tensor's own.
        family: what it is, where its tensors do not say so ("sd1", "sdxl_inpaint", a file of `families/`).
        prediction_type: meaning of the U-Net's output, for a file that does not state it.
        averaged: take the U-Net's moving average (EMA) where the file has it beside the plain weights.
        with_vae: returns the plan with another autoencoder; the file needs none of its own then.
        left_out: parts that stay on the meta device, without weights.

    Raises:
        CheckpointError: the file is missing, damaged, does not fit, or is none of a family that we have.
        ConfigError: unknown `family`.
    """
    file = open_checkpoint(Path(path))
    plan = plan_single_file(file, family, needs_autoencoder=with_vae is None).predicting(prediction_type)
    choice, note = _average(file, averaged)
    plan = plan.noting(*([note] if note else []))
    plan = plan if with_vae is None else with_vae(plan)
    places = {place.part: place for place in text_places(file.tensors)}

    def weights(part: str, network: nn.Module) -> Weights:
        if isinstance(network, UNetNetwork):
            return Weights(file.source, _unet(file, network, choice))
        if isinstance(network, AutoencoderKL):
            return Weights(file.source, compvis_autoencoder(file.tensors, AUTOENCODER, network))
        return Weights(file.source, _text(file, network, places[part]))

    return assemble(plan, file.source, weights, dtype, left_out)


def plan_single_file(file: CheckpointFile, family: str | None = None, *, needs_autoencoder: bool = True) -> ModelPlan:
    """Return what the model of a file is: by its header where the file is ours, else by its tensors.

    Raises:
        CheckpointError: parts are missing or strange, or it is none of a family that we have.
        ConfigError: unknown `family`.
    """
    places = text_places(file.tensors)
    plan = None if family else plan_of(file.metadata, file.source)
    plan = plan or _plan_of_family(file, family, places)
    missing = [
        what
        for what, there in (
            (AUTOENCODER_PART, not needs_autoencoder or any(name.startswith(AUTOENCODER) for name in file.tensors)),
            ("the text encoder", bool(places)),
        )
        if not there
    ]
    if missing:
        advice = "give an autoencoder with vae=... (--vae)" if missing == [AUTOENCODER_PART] else "give a whole model"
        raise CheckpointError(f"{file.source}: {' and '.join(missing)} missing; {advice}")
    parts, found = [tower.part for tower in plan.towers], [place.part for place in places]
    if parts != found:
        raise CheckpointError(
            f"{file.source}: its text encoders are {' and '.join(place.prefix for place in places)}, "
            f"a model of this family has {len(parts)}: {', '.join(parts)}; another family=... (--family)?"
        )
    if unknown := strangers(file.tensors, places):
        raise CheckpointError(f"{file.source}: {len(unknown)} tensors belong to no part: {some(unknown)}")
    return plan


def _plan_of_family(file: CheckpointFile, family: str | None, places: tuple[TextPlace, ...]) -> ModelPlan:
    """Return the plan of a file that others wrote."""
    found = detect(Weights(file.source, file.tensors), file.metadata, file.step, family)
    values = family_values(found.family)
    scheduler = dict(values.SCHEDULER)
    if found.prediction_type is not None:
        scheduler["prediction_type"] = found.prediction_type
    if found.zero_terminal_snr:  # PNDM's class has no such schedule
        kind = scheduler["_class_name"].replace("PNDM", "DDIM")
        scheduler |= {"_class_name": kind, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    towers = tuple(_tower(config) for config in values.TEXT)
    notes = list(found.notes)
    for place, config in zip(places, values.TEXT, strict=False):
        if _layers(file.tensors, place) > config.layers:
            notes.append(f"{place.part}: layers after number {config.layers} are not used")
    return ModelPlan(
        values.UNET,
        values.AUTOENCODER,
        towers,
        scheduler,
        f"{file.source}: the scheduler of family {found.family}",
        file.source.stem,
        tuple(notes),
        getattr(values, "ZEROS_FOR_EMPTY_PROMPT", False),
    )


def _tower(config: TextConfig) -> Tower:
    tokenizer = clip_vocabulary(config.pad_token, config.context_length)
    part = "text_encoder" if config.projection is None else "text_encoder_2"
    return Tower(part, on_meta(config.build, tokenizer), tokenizer, config.penultimate)


def _layers(names: Iterable[str], place: TextPlace) -> int:
    """Return the number of layers of a tower of open-clip's kind; 0 for others."""
    if not place.open_clip:
        return 0
    numbers = [name.removeprefix(place.mark).split(".")[0] for name in names if name.startswith(place.mark)]
    return 1 + max(int(number) for number in numbers if number.isdecimal())


def _average(file: CheckpointFile, wanted: bool) -> tuple[bool, str]:
    """Return whether the U-Net's moving average is taken, and a note where there was a choice.

    Raises:
        CheckpointError: it was asked for and is not there.
    """
    plain = any(name.startswith(UNET) for name in file.tensors)
    there = averaged_name("input_blocks.0.0.weight") in file.tensors
    if not there:
        if wanted:
            raise CheckpointError(f"{file.source}: has no averaged (EMA) weights; leave out averaged=True (--ema)")
        return False, ""
    if not plain:
        return True, "U-Net: averaged (EMA) weights; the file has no others"
    if wanted:
        return True, "U-Net: averaged (EMA) weights, from the option averaged"
    note = "U-Net: plain weights; the file also holds averaged ones (averaged=True, --ema)"
    warn(f"{file.source}: {note}")
    return False, note


def _unet(file: CheckpointFile, network: UNetNetwork, averaged: bool) -> dict[str, Stored]:
    """Return the U-Net's tensors under its own names; unknown ones stay, so that the check can tell."""
    names = unet_names(network.config, network.state_dict())
    if averaged:
        return _named(file.tensors, averaged_name(""), {averaged_name(there): here for here, there in names.items()})
    return _named(file.tensors, UNET, {UNET + there: here for here, there in names.items()})


def _text(file: CheckpointFile, network: Any, place: TextPlace) -> dict[str, Stored]:
    """Return a text tower's tensors under transformers' names."""
    under = {
        name.removeprefix(place.prefix): stored
        for name, stored in file.tensors.items()
        if name.startswith(place.prefix)
    }
    found = {name: stored for name, stored in under.items() if name.rpartition(".")[2] not in TEXT_EXTRAS}
    if not place.open_clip:
        return found
    read = {f"transformer.resblocks.{index}." for index in range(network.config.num_hidden_layers)}
    block = f"{place.mark.removeprefix(place.prefix)}"
    found = {n: s for n, s in found.items() if not n.startswith(block) or n[: n.find(".", len(block)) + 1] in read}
    return from_open_clip(found, TEXT)


def _named(tensors: Mapping[str, Stored], prefix: str, names: Mapping[str, str]) -> dict[str, Stored]:
    return {names.get(name, name): stored for name, stored in tensors.items() if name.startswith(prefix)}


def save_single_file(components: Components, path: Path | str, dtype: torch.dtype | None = None) -> None:
    """Write a model as one file for us and for every tool that reads CompVis and A1111 files.

    Args:
        components: the model.
        path: ends in .safetensors; the folder must exist.
        dtype: None keeps each tensor's own.

    Raises:
        ConfigError: another suffix.
        ResourceError: the file cannot be written; an older one is as it was.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ConfigError(f"{str(path)!r}: single files are written as {SUFFIX}")
    unet, autoencoder = components.unet, components.autoencoder
    names = unet_names(unet.config, unet.state_dict())
    tensors = {UNET + names[name]: tensor for name, tensor in unet.state_dict().items()}
    names = autoencoder_names(autoencoder.config, autoencoder.state_dict())
    for name, tensor in autoencoder.state_dict().items():
        inner = ".attentions." in name and tensor.dim() == 2
        tensors[AUTOENCODER + names[name]] = tensor[:, :, None, None] if inner else tensor
    for tower, place in zip(components.text_encoder.towers, _places(components), strict=True):
        state = {bare(name): tensor for name, tensor in tower.model.state_dict().items()}
        inside = to_open_clip(state) if place.open_clip else {f"text_model.{name}": t for name, t in state.items()}
        tensors |= {place.prefix + name: tensor for name, tensor in inside.items()}
    tensors = {name: tensor.detach().to(dtype or tensor.dtype) for name, tensor in tensors.items()}
    write_tensors(path, tensors | _markers(components), header_of(components))


def _places(components: Components) -> tuple[TextPlace, ...]:
    towers: tuple[TextEncoder, ...] = components.text_encoder.towers
    return layout(
        len(towers),
        projection=bool(towers[-1].pooled_width),
        open_clip=towers[-1].config.hidden_act == "gelu",
    )


def _markers(components: Components) -> dict[str, Tensor]:
    """Return the empty tensors by which tools know what the U-Net's output means."""
    schedule: Any = components.schedule
    markers = {
        "v_pred": components.prediction.name == "v_prediction",
        "ztsnr": bool(getattr(schedule, "zero_terminal_snr", False)),
    }
    return {name: torch.zeros(0) for name, wanted in markers.items() if wanted}
