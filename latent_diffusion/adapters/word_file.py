"""Read learned words (textual inversion) from the files people have.

A1111        {"string_to_param": {"*": (n, D)}, "name": ..., "step": ...}     .pt
kohya        {"emb_params": (n, D)}                                           .safetensors
diffusers    {token: (D,) or (n, D)}                                          .safetensors, .bin
SDXL         {"clip_l": (n, D1), "clip_g": (n, D2)}                           .safetensors, .pt
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_diffusion.adapters.family import family_of_width
from latent_diffusion.adapters.lora_file import HASH_DIGITS
from latent_diffusion.adapters.model_parts import tower_names
from latent_diffusion.adapters.words import Word
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.files.pickle_file import is_pickle, read_pickle
from latent_diffusion.checkpoint.files.safetensors_file import read_tensors
from latent_diffusion.errors import CheckpointError, ConfigError

__all__ = ["read_words"]

IN_FOLDER = ("learned_embeds.safetensors", "learned_embeds.bin")
OF_SDXL = ("clip_l", "clip_g")
NAMELESS = ("emb_params", "*")  # keys that are no token: the file's name is
MAX_VECTORS = 1000  # of one word; more fill no prompt


def read_words(path: Path | str, components: Components, token: str | None = None) -> tuple[Word, ...]:
    """Return the learned words of a file, for the text encoders of a model.

    Args:
        path: a .safetensors, .pt or .bin file, or a folder that diffusers wrote one into.
        components: the model whose text encoders shall know them.
        token: what to call it in prompts; None = the token of the file, or the file's name where it holds none.

    Raises:
        CheckpointError: the file is missing or damaged, holds no learned word, or one for another model.
        ConfigError: `token` for a file of several words, or one that cannot be a word.
    """
    file = _find(Path(path))
    found = _words(file, _read(file))
    if token is not None and len(found) > 1:
        raise ConfigError(f"{file}: holds {len(found)} words ({', '.join(found)[:200]}); token= can name only one")
    with open(file, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()[:HASH_DIGITS]
    words = found if token is None else dict(zip([token], found.values()))
    return tuple(
        Word(_checked(file, name), _fitted(file, vectors, components), str(file), digest)
        for name, vectors in words.items()
    )


def _find(path: Path) -> Path:
    if path.is_dir():
        path = next((path / name for name in IN_FOLDER if (path / name).is_file()), path / IN_FOLDER[0])
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    return path


def _read(file: Path) -> Mapping[Any, Any]:
    if not is_pickle(file):
        return read_tensors(file)
    values = read_pickle(file)
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: holds a {type(values).__name__}, no learned words")
    return values


def _words(file: Path, values: Mapping[Any, Any]) -> dict[str, dict[str, Tensor]]:
    """Return token -> name of its vectors -> (n, D); the name is "" or, in SDXL's files, "clip_l" or "clip_g"."""
    inner = values.get("string_to_param")
    if isinstance(inner, Mapping):
        values = inner
    tensors = {str(key): value for key, value in values.items() if isinstance(value, Tensor)}
    name = file.parent.name if file.name in IN_FOLDER else file.stem
    if set(OF_SDXL) <= tensors.keys():
        return {name: {key: _rows(file, tensors[key]) for key in OF_SDXL}}
    found = {name if key in NAMELESS else key: {"": _rows(file, tensor)} for key, tensor in tensors.items()}
    if not found:
        raise CheckpointError(f"{file}: holds no learned word; its keys are {', '.join(map(str, values))[:200]}")
    return found


def _rows(file: Path, tensor: Tensor) -> Tensor:
    rows = tensor.detach()[None] if tensor.ndim == 1 else tensor.detach()
    if rows.ndim != 2 or not rows.is_floating_point() or not 1 <= len(rows) <= MAX_VECTORS:
        raise CheckpointError(
            f"{file}: a word is 1 to {MAX_VECTORS} vectors; found {tuple(tensor.shape)} {tensor.dtype}"
        )
    if not torch.isfinite(rows.sum(dtype=torch.float64)):
        raise CheckpointError(f"{file}: its vectors hold NaN or infinity: the file is damaged")
    return rows


def _fitted(file: Path, vectors: Mapping[str, Tensor], components: Components) -> dict[str, Tensor]:
    """Return the vectors by text tower.

    Raises:
        CheckpointError: a tower gets none, or vectors of another width.
    """
    towers = tower_names(components)
    names = {"": next(iter(towers)), "clip_l": "text_encoder", "clip_g": "text_encoder_2"}
    given = {names[key]: rows for key, rows in vectors.items()}
    for name, tower in towers.items():
        width = given[name].shape[1] if name in given else None
        if width != tower.width:
            made = ", ".join(f"{rows.shape[1]}" for rows in vectors.values())
            wanted = ", ".join(f"{tower.width}" for tower in towers.values())
            raise CheckpointError(
                f"{file}: its vectors have {made} channels, the text encoders of {components.name} {wanted}; "
                f"it was made for {family_of_width(sum(rows.shape[1] for rows in vectors.values()))}"
            )
    return {name: given[name] for name in towers}


def _checked(file: Path, token: str) -> str:
    if not token or token != " ".join(token.split()) or not token.isprintable() or len(token) > 100:
        raise ConfigError(
            f"{file}: its token {token[:100]!r} cannot be used in a prompt; "
            "rename the file or use token= in Python: 1 to 100 characters, single blanks between words"
        )
    return token
