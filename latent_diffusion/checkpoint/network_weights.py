"""Weights of one network in its folder: one safetensors file or shards, read strictly.

Nothing is loaded from a pickle, and nothing is skipped: names, shapes, dtypes and values are checked before a network
is handed out.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from latent_diffusion.checkpoint.json_file import read_json
from latent_diffusion.checkpoint.safetensors_file import read_tensors, write_tensors
from latent_diffusion.errors import CheckpointError

__all__ = ["load_weights", "save_weights"]

logger = logging.getLogger(__name__)

FILE = "diffusion_pytorch_model.safetensors"
VARIANTS = (FILE, "diffusion_pytorch_model.fp16.safetensors")
INDEX = f"{FILE}.index.json"
PICKLES = ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin")
SHOWN = 5  # names listed of each kind of misfit
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # autoencoders before 2023
PREFIXES = ("module.", "_orig_mod.", "model.", "unet.", "vae.")  # what wrappers leave in front of names


def load_weights(model: nn.Module, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Fill a network built on the meta device with the weights of `folder`, on the CPU in `dtype`; evaluation mode.

    Raises:
        CheckpointError: a file is missing or damaged, names or shapes do not fit, or a weight is no finite number.
    """
    file = weights_file(folder)
    found = renamed(read_shards(file) if file.name == INDEX else read_tensors(file))
    check_fit(file, found, {name: tensor.shape for name, tensor in model.state_dict().items()})
    check_values(file, found)
    model.to_empty(device="cpu").to(dtype)
    model.load_state_dict(found)
    return model.eval()


def save_weights(model: nn.Module, folder: Path, dtype: torch.dtype | None) -> None:
    """Write the weights of a network to `folder`; `dtype` None keeps their own."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / FILE, {name: t.detach().to(dtype or t.dtype) for name, t in model.state_dict().items()})


def weights_file(folder: Path) -> Path:
    """Return the file of weights, or the index of the shards.

    Raises:
        CheckpointError: there is none; the message says what to do when there are only pickles.
    """
    for name in (*VARIANTS, INDEX):
        if (folder / name).is_file():
            return folder / name
    pickles = [name for name in PICKLES if (folder / name).exists()]
    if pickles:
        raise CheckpointError(f"{folder}: only {pickles[0]}, a pickle that could run code; convert it to safetensors")
    raise CheckpointError(f"{folder}: no weights; {FILE} was expected")


def read_shards(index: Path) -> dict[str, Tensor]:
    """Return the tensors of all shards named in an index.

    Raises:
        CheckpointError: a shard lies outside the folder, is missing, or does not hold what the index says.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{index}: weight_map must map names of tensors to names of files")
    names = sorted(set(places.values()))
    for name in names:  # all of them before any is opened
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: shard {name!r} must be a .safetensors file in the same folder")
    tensors: dict[str, Tensor] = {}
    for name in names:
        shard = read_tensors(index.parent / name)
        promised = {key for key, place in places.items() if place == name}
        if shard.keys() != promised:
            wrong = sorted(shard.keys() ^ promised)
            raise CheckpointError(f"{index}: shard {name} and the index disagree on {len(wrong)}: {_some(wrong)}")
        tensors |= shard
    return tensors


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under today's names: attention of old autoencoders had others."""
    result = {}
    for name, tensor in tensors.items():
        head, _, last = name.rpartition(".")
        path, _, layer = head.rpartition(".")
        if ".attentions." in head and layer in OLD_NAMES:
            name = f"{path}.{OLD_NAMES[layer]}.{last}"
            if last == "weight" and tensor.dim() == 4:  # they were 1x1 convolutions once
                tensor = tensor[:, :, 0, 0]
        result[name] = tensor
    return result


def check_fit(file: Path, found: Mapping[str, Tensor], wanted: Mapping[str, torch.Size]) -> None:
    """Check names and shapes.

    Raises:
        CheckpointError: counts and the first names that are missing or unknown; or the first shape that differs.
    """
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or unknown:
        kinds = [f"{len(n)} {kind}: {_some(n)}" for kind, n in (("missing", missing), ("unknown", unknown)) if n]
        wrapped = next((p for p in PREFIXES if unknown and all(name.startswith(p) for name in found)), None)
        cause = f"; every name starts with {wrapped!r}: save the network without its wrapper" if wrapped else ""
        raise CheckpointError(f"{file}: tensors do not fit config.json: {'; '.join(kinds)}{cause}")
    for name, shape in wanted.items():
        if found[name].shape != shape:
            raise CheckpointError(
                f"{file}: {name} is {tuple(found[name].shape)}, config.json asks for {tuple(shape)}{_cause(name)}"
            )


def check_values(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check that weights are finite floating-point numbers and not all 0.

    Raises:
        CheckpointError: naming the tensor.
    """
    nothing = True
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise CheckpointError(f"{file}: {name} is {_name(tensor.dtype)}; weights are floating-point numbers")
        plain = tensor.float() if tensor.element_size() == 1 else tensor  # float8 has no arithmetic
        # one pass without a temporary: float64 sums of finite narrower numbers cannot overflow
        if not torch.isfinite(plain.sum(dtype=torch.float64)):
            raise CheckpointError(f"{file}: {name} holds NaN or infinity: the file is damaged or its training diverged")
        nothing = nothing and not plain.any()
    if nothing:
        raise CheckpointError(f"{file}: every weight is 0: the file was never filled")
    dtypes = sorted({_name(tensor.dtype) for tensor in tensors.values()})
    logger.debug("%s: %d tensors, %s", file, len(tensors), ", ".join(dtypes))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _cause(name: str) -> str:
    if name == "conv_in.weight":
        return "; is one of them an inpainting model (9 input channels)?"
    if ".attn2.to_" in name:
        return "; were they made for different text encoders (SD 1: 768, SD 2: 1024, SDXL: 2048)?"
    return ""
