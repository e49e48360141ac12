"""Weights of one network in its folder: one safetensors file, shards, or an old `.bin`, read strictly.

No code of a pickle is run, and nothing is skipped: names, shapes, dtypes and values are checked before a network is
handed out.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from latent_diffusion.checkpoint.files.json_file import read_json
from latent_diffusion.checkpoint.files.links import refuse_broken_link
from latent_diffusion.checkpoint.files.pickle_file import open_pickle
from latent_diffusion.checkpoint.files.safetensors_file import open_tensors, write_tensors
from latent_diffusion.checkpoint.files.weights import Network, Stored, Weights, fill, some
from latent_diffusion.errors import CheckpointError

__all__ = ["load_weights", "open_weights", "renamed", "save_weights", "weights_file", "weights_of"]

STEM = "diffusion_pytorch_model"  # what names of weight files begin with; of a text model it is "model"
NAMES = ("{}.safetensors", "{}.fp16.safetensors", "{}.safetensors.index.json", "{}.safetensors.index.fp16.json")
PICKLES = ("{}.bin", "{}.fp16.bin", "pytorch_{}.bin", "pytorch_{}.fp16.bin")  # where there is no safetensors file
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # autoencoders before 2023


def load_weights(model: Network, folder: Path, dtype: torch.dtype) -> Network:
    """Fill a network built on the meta device with the weights of `folder`, on the CPU in `dtype`; evaluation mode.

    Raises:
        CheckpointError: a file is missing or damaged, names or shapes do not fit, or a weight is no finite number.
    """
    return fill(model, open_weights(folder), dtype)


def open_weights(folder: Path, stem: str = STEM) -> Weights:
    """Return the weights in the folder of a network, under today's names; `stem` is what their files' names begin with.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    return weights_of(weights_file(folder, stem))


def weights_of(file: Path) -> Weights:
    """Return the weights in a file, or in the shards that an index names, under today's names.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    if file.suffix == ".bin":
        return Weights(file, renamed(open_pickle(file)[0]))
    return Weights(file, renamed(open_shards(file) if file.suffix == ".json" else open_tensors(file)))


def save_weights(model: nn.Module, folder: Path, dtype: torch.dtype | None) -> None:
    """Write the weights of a network to `folder`; `dtype` None keeps their own."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(
        folder / f"{STEM}.safetensors",
        {name: t.detach().to(dtype or t.dtype) for name, t in model.state_dict().items()},
    )


def weights_file(folder: Path, stem: str = STEM) -> Path:
    """Return the file of weights, or the index of the shards; safetensors first, full precision before half.

    Raises:
        CheckpointError: there is none.
    """
    for name in NAMES + PICKLES:
        file = folder / name.format(stem)
        refuse_broken_link(file)
        if file.is_file():
            return file
    raise CheckpointError(f"{folder}: no weights; {stem}.safetensors was expected")


def open_shards(index: Path) -> dict[str, Stored]:
    """Return the tensors of all shards named in an index.

    Raises:
        CheckpointError: a shard lies outside the folder, is missing, or does not agree with the index.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{index}: weight_map must map names of tensors to names of files")
    names = sorted(set(places.values()))
    for name in names:  # all of them before any is opened
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: shard {name!r} must be a .safetensors file in the same folder")
    tensors: dict[str, Stored] = {}
    for name in names:
        shard = open_tensors(index.parent / name)
        promised = {key for key, place in places.items() if place == name}
        if shard.keys() != promised:
            wrong = sorted(shard.keys() ^ promised)
            raise CheckpointError(f"{index}: shard {name} and the index disagree on {len(wrong)}: {some(wrong)}")
        tensors |= shard
    return tensors


def renamed(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Return the tensors under today's names: attention of old autoencoders had others."""
    result = {}
    for name, stored in tensors.items():
        head, _, last = name.rpartition(".")
        path, _, layer = head.rpartition(".")
        if ".attentions." in head and layer in OLD_NAMES:
            name = f"{path}.{OLD_NAMES[layer]}.{last}"
            if last == "weight" and stored.shape[2:] == (1, 1):  # they were 1x1 convolutions once
                stored = stored.viewed(stored.shape[:2], lambda tensor: tensor[:, :, 0, 0])
        result[name] = stored
    return result
