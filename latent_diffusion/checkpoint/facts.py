"""Facts about a model, from its configurations and the headers of its weights; no weight is read."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latent_diffusion.checkpoint.files.checkpoint_file import CheckpointFile, open_checkpoint
from latent_diffusion.checkpoint.files.json_file import read_json
from latent_diffusion.checkpoint.files.weights import Stored, Weights, dtype_name
from latent_diffusion.checkpoint.folder.network_weights import open_weights
from latent_diffusion.checkpoint.folder.text_folder import open_text_weights
from latent_diffusion.checkpoint.prompt_forms import NAMES, read_prompt_forms
from latent_diffusion.checkpoint.single.detect import detect, looks_like
from latent_diffusion.checkpoint.single.layout import AUTOENCODER, UNET, averaged_name, text_places
from latent_diffusion.checkpoint.single.single_header import INDEX, KEY, SCHEDULER
from latent_diffusion.errors import CheckpointError

__all__ = ["file_facts", "folder_facts"]

MAX_LEVELS = 16  # of an autoencoder; published ones have four
TEXT_PARTS = ("text_encoder", "text_encoder_2")
SAID = ("prediction_type", "num_train_timesteps", "beta_schedule", "rescale_betas_zero_snr", "timestep_spacing")


def folder_facts(folder: Path) -> dict[str, object]:
    """Return the facts of a diffusers folder.

    Raises:
        CheckpointError: a part is missing or damaged.
    """
    index = read_json(folder / INDEX)
    facts: dict[str, object] = {"folder": os.path.relpath(folder), "kind": index.get("_class_name")}
    texts = [part for part in TEXT_PARTS if (folder / part).is_dir()]
    for part in ("unet", "vae", *(texts or TEXT_PARTS[:1])):
        opened = open_text_weights(folder / part) if part in TEXT_PARTS else open_weights(folder / part)
        facts[part] = _amount(opened.tensors)
    configs = {part: read_json(folder / part / "config.json") for part in ("unet", "vae")}
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    facts |= _sizes(configs["unet"], configs["vae"], str(folder / "vae" / "config.json"))
    facts |= _law(scheduler)
    forms = read_prompt_forms(folder)
    if forms is not None:
        facts["prompts"] = ", ".join(f"{opening} …" for opening in forms.styles)
        facts["style where none is named"] = forms.default_style
        facts["names"] = f"{len(set(forms.names.values()))}, in {NAMES}; other words are left out"
    card = folder / "README.md"
    if card.is_file():
        facts["model card"] = os.path.relpath(card)
    return facts


def file_facts(file: Path) -> dict[str, object]:
    """Return the facts of a single file; for a file that is not a whole model, its kind.

    Raises:
        CheckpointError: the file is damaged, or a model of a kind that we do not have.
    """
    opened = open_checkpoint(file)
    facts: dict[str, object] = {"file": os.path.relpath(file), "tensors": _amount(opened.tensors)}
    what = looks_like(opened.tensors)
    if what is not None:
        return facts | {"kind": what} | _metadata(opened.metadata)
    facts |= _parts(opened)
    if KEY in opened.metadata:
        facts |= _own(opened)
    else:
        found = detect(Weights(file, opened.tensors), opened.metadata, opened.step)
        for note in found.notes:
            name, _, value = note.partition(": ")
            facts[name] = value
    return facts | _metadata(opened.metadata)


def _parts(opened: CheckpointFile) -> dict[str, object]:
    """Return how much of a file belongs to which part."""
    starts = {"unet": UNET, "averaged unet (EMA)": averaged_name(""), "vae": AUTOENCODER}
    starts |= {place.part: place.prefix for place in text_places(opened.tensors)}
    groups = {
        part: {name: stored for name, stored in opened.tensors.items() if name.startswith(start)}
        for part, start in starts.items()
    }
    return {part: _amount(group) for part, group in groups.items() if group}


def _own(opened: CheckpointFile) -> dict[str, object]:
    """Return the facts in the header of a file that this package wrote."""
    try:
        values = json.loads(opened.metadata[KEY])
        index, unet, vae = values[INDEX], values["unet/config.json"], values["vae/config.json"]
        return {"kind": index["_class_name"], **_sizes(unet, vae, str(opened.source)), **_law(values[SCHEDULER])}
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{opened.source}: metadata {KEY!r} of the header is damaged") from None


def _amount(tensors: Mapping[str, Stored]) -> str:
    count = sum(math.prod(stored.shape) for stored in tensors.values())
    size = sum(math.prod(stored.shape) * stored.dtype.itemsize for stored in tensors.values())
    dtypes = ", ".join(sorted({dtype_name(stored.dtype) for stored in tensors.values()}))
    return f"{count / 1e6:.1f} M weights, {size / 1e6:.1f} MB, {dtypes}"


def _sizes(unet: Mapping[str, Any], vae: Mapping[str, Any], file: str) -> dict[str, object]:
    blocks = vae.get("block_out_channels", [1])
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= MAX_LEVELS:
        raise CheckpointError(f"{file}: block_out_channels is no list of levels")
    factor, facts = 2 ** (len(blocks) - 1), {}
    if isinstance(side := unet.get("sample_size"), int):
        facts["picture size"] = f"{side * factor}x{side * factor} px"
    facts["latents"] = f"{vae.get('latent_channels')} channels, 1 cell for {factor}x{factor} px"
    if unet.get("in_channels") != vae.get("latent_channels"):
        facts["input channels"] = unet.get("in_channels")
    return facts


def _law(scheduler: Mapping[str, Any]) -> dict[str, object]:
    facts = {name.replace("_", " "): scheduler[name] for name in SAID if name in scheduler}
    return facts | ({"sampler": scheduler["_class_name"]} if "_class_name" in scheduler else {})


def _metadata(metadata: Mapping[str, str]) -> dict[str, object]:
    """Return the short fields of a header, which other tools wrote; ours is told in other words."""
    return {name: value for name, value in sorted(metadata.items()) if name != KEY and len(value) <= 200}
