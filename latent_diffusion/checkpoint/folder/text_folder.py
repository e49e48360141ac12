"""Text encoders <-> the `text_encoder/` and `tokenizer/` folders of a diffusers model, SDXL's `_2` too.

What transformers 5 writes is not what other readers need: a text model built from a config is saved without the
`text_model.` prefix. We always write it, so that transformers 4 and 5, ComfyUI and single-file converters all read the
folder.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from latent_diffusion.checkpoint.files.json_file import read_json, write_json
from latent_diffusion.checkpoint.files.safetensors_file import write_tensors
from latent_diffusion.checkpoint.files.weights import Weights, dtype_name, fill
from latent_diffusion.checkpoint.folder.network_weights import open_weights
from latent_diffusion.checkpoint.folder.tokenizer_folder import load_tokenizer, save_tokenizer
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.models.clip_text import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from latent_diffusion.models.text_encoder import TextEncoder

__all__ = ["load_text_encoder", "save_text_encoder", "text_config"]

PREFIX = "text_model."
STEM = "model"  # what names of weight files begin with
ENDINGS = ("", "_2")  # of the folders of each tower; the second tower has a projection


def load_text_encoder(folder: Path | str, dtype: torch.dtype = torch.float32) -> TextEncoder:
    """Read `folder/text_encoder` and `folder/tokenizer`; nothing is looked up anywhere else.

    Args:
        folder: the model's.
        dtype: of the weights.

    Returns:
        The text encoder in evaluation mode, its weights in `dtype`, on the CPU.

    Raises:
        CheckpointError: a file is missing or damaged, keys or shapes do not fit, or the vocabulary does not fit.
    """
    tokenizer = load_tokenizer(Path(folder) / "tokenizer")
    model = load_text_model(Path(folder) / "text_encoder", dtype)
    try:
        return TextEncoder(model, tokenizer)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: text_encoder/ and tokenizer/ do not belong together: {error}") from None


def load_text_model(
    folder: Path, dtype: torch.dtype = torch.float32, *, projection: bool = False
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """Read a text model, with or without the `text_model.` prefix, strictly; evaluation mode.

    Raises:
        CheckpointError: a file is missing or damaged, or keys or shapes do not fit the config.
    """
    file = folder / "config.json"
    return fill_text_model(plan_text_model(read_json(file), str(file), projection), open_text_weights(folder), dtype)


def plan_text_model(
    values: Mapping[str, Any], file: str, projection: bool
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """Return the model that the fields of a config.json mean, on the meta device; `file` is where they were found.

    Raises:
        CheckpointError: a field is damaged or does not describe a CLIP text model.
    """
    layers = values.get("num_hidden_layers", 12)
    if not isinstance(layers, int) or not 0 <= layers <= MAX_LAYERS:  # a million layers take an hour, even empty ones
        raise CheckpointError(f"{file}: num_hidden_layers is {layers!r}; at most {MAX_LAYERS} are read")
    known = {field.name for field in fields(CLIPTextConfig)} - NOT_OF_THE_MODEL
    try:
        config = CLIPTextConfig(**{name: value for name, value in values.items() if name in known})
        with torch.device("meta"):
            return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)
    except (ConfigError, RuntimeError, TypeError) as error:  # torch's where sizes are beyond any number
        raise CheckpointError(f"{file}: not a CLIP text model: {' '.join(str(error).split())}") from None


def open_text_weights(folder: Path) -> Weights:
    """Return the weights in the folder of a text model.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    return open_weights(folder, STEM)


TextModel = TypeVar("TextModel", bound=nn.Module)


def fill_text_model(model: TextModel, weights: Weights, dtype: torch.dtype | None) -> TextModel:
    """Fill a text model built on the meta device; names may have the `text_model.` prefix or not.

    Raises:
        CheckpointError: names or shapes do not fit, or a weight is no finite number.
    """
    names = {bare(name): name for name in model.state_dict()}
    found = {names.get(bare(name), bare(name)): stored for name, stored in weights.tensors.items()}
    for name in IGNORED - names.keys():
        found.pop(name, None)
    return fill(model, Weights(weights.source, found), dtype)


NOT_OF_THE_MODEL = {"model_type"}  # "clip" in some
CONFIG_KEYS = (
    *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "projection_dim", "hidden_act", "layer_norm_eps", "attention_dropout"),
    *("initializer_range", "initializer_factor", "bos_token_id", "eos_token_id", "pad_token_id"),
)
MAX_LAYERS = 200  # of a text model; published ones have up to 32
PROJECTION = "text_projection.weight"  # SDXL's second tower has it, and never the prefix
IGNORED = {"embeddings.position_ids", PROJECTION}  # a buffer of old files; a head that SD 1 and 2 never see


def bare(name: str) -> str:
    """Return a key without the `text_model.` prefix."""
    return name.removeprefix(PREFIX)


def text_state(text_encoder: TextEncoder, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return the text model's tensors under the names that all readers accept (`text_model.` prefix), contiguous."""
    own = text_encoder.model.state_dict()
    tensors = {name if name == PROJECTION else PREFIX + bare(name): tensor for name, tensor in own.items()}
    return {name: tensor.detach().cpu().to(dtype or tensor.dtype).contiguous() for name, tensor in tensors.items()}


def text_config(text_encoder: TextEncoder) -> dict[str, Any]:
    """Return the values of a text model's config.json that decide the model."""
    return {name: getattr(text_encoder.config, name) for name in CONFIG_KEYS}


def save_text_encoder(text_encoder: TextEncoder, folder: Path | str, dtype: torch.dtype | None = None) -> None:
    """Write `folder/text_encoder` and `folder/tokenizer`, with `_2` for a tower with projection.

    `dtype` None keeps the weights' own.
    """
    folder, ending = Path(folder), ENDINGS[bool(text_encoder.pooled_width)]
    target = folder / f"text_encoder{ending}"
    target.mkdir(parents=True, exist_ok=True)
    tensors = text_state(text_encoder, dtype)
    kept = next(iter(tensors.values())).dtype
    config = text_config(text_encoder)
    kind = "CLIPTextModelWithProjection" if text_encoder.pooled_width else "CLIPTextModel"
    config |= {"architectures": [kind], "torch_dtype": dtype_name(kept)}
    write_json(target / "config.json", dict(sorted(config.items())))
    write_tensors(target / f"{STEM}.safetensors", tensors, {"format": "pt"})
    save_tokenizer(text_encoder.tokenizer, folder / f"tokenizer{ending}", text_encoder.context_length)
