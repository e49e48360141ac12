"""Text encoders and tokenizers <-> the `text_encoder/` and `tokenizer/` folders of a diffusers model, SDXL's `_2` too.

What transformers 5 writes is not what other readers need: a text model built from a config is saved without the
`text_model.` prefix, and a tokenizer as `tokenizer.json` alone. We always write the prefix, and vocab.json, merges.txt,
special_tokens_map.json too, so that transformers 4 and 5, ComfyUI and single-file converters all read the folder.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from latent_diffusion.checkpoint.json_file import read_json, write_json
from latent_diffusion.checkpoint.network_weights import open_weights
from latent_diffusion.checkpoint.safetensors_file import write_tensors
from latent_diffusion.checkpoint.weights import Weights, fill
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.models.text_encoder import TextEncoder

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

__all__ = ["load_text_encoder", "save_text_encoder", "text_config"]

PREFIX = "text_model."
STEM = "model"  # what names of weight files begin with
ENDINGS = ("", "_2")  # of the folders of each tower; the second tower has a projection
TOKENIZER_VERSION = "#version: 0.2 - byte pairs, one merge a line"


def load_text_encoder(
    folder: Path | str, dtype: torch.dtype = torch.float32, *, tower: int = 0, penultimate: bool = False
) -> TextEncoder:
    """Read `folder/text_encoder` and `folder/tokenizer`; nothing is looked up anywhere else.

    Args:
        folder: the model's.
        dtype: of the weights.
        tower: 0, or 1 for SDXL's `text_encoder_2` and `tokenizer_2`, which has a projection.
        penultimate: see `TextEncoder`.

    Returns:
        The text encoder in evaluation mode, its weights in `dtype`, on the CPU.

    Raises:
        CheckpointError: a file is missing or damaged, keys or shapes do not fit, or the vocabulary does not fit.
    """
    names = [f"text_encoder{ENDINGS[tower]}", f"tokenizer{ENDINGS[tower]}"]
    model_folder, tokenizer_folder = (Path(folder) / name for name in names)
    tokenizer = load_tokenizer(tokenizer_folder)
    model = load_text_model(model_folder, dtype, projection=bool(tower))
    try:
        return TextEncoder(model, tokenizer, penultimate=penultimate)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {names[0]}/ and {names[1]}/ do not belong together: {error}") from None


def load_text_model(
    folder: Path, dtype: torch.dtype = torch.float32, *, projection: bool = False
) -> "CLIPTextModel | CLIPTextModelWithProjection":
    """Read a text model, with or without the `text_model.` prefix, strictly; evaluation mode.

    Raises:
        CheckpointError: a file is missing or damaged, or keys or shapes do not fit the config.
    """
    file = folder / "config.json"
    return fill_text_model(plan_text_model(read_json(file), str(file), projection), open_text_weights(folder), dtype)


def plan_text_model(
    values: Mapping[str, Any], file: str, projection: bool
) -> "CLIPTextModel | CLIPTextModelWithProjection":
    """Return the model that the fields of a config.json mean, on the meta device; `file` is where they were found.

    Raises:
        CheckpointError: a field is damaged or asks for what is no CLIP text model.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    layers = values.get("num_hidden_layers", 12)
    if not isinstance(layers, int) or not 0 <= layers <= MAX_LAYERS:  # a million layers take an hour, even empty ones
        raise CheckpointError(f"{file}: num_hidden_layers is {layers!r}; at most {MAX_LAYERS} are read")
    try:
        config = CLIPTextConfig(**{k: v for k, v in values.items() if k not in NOT_OF_THE_MODEL})
        with torch.device("meta"):
            return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)
    except Exception as error:  # the strict configs of transformers raise their own kind
        raise CheckpointError(f"{file}: not a CLIP text model: {' '.join(str(error).split())}") from None


def open_text_weights(folder: Path) -> Weights:
    """Return the weights in the folder of a text model.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    return open_weights(folder, STEM)


TextModel = TypeVar("TextModel", bound=nn.Module)


def fill_text_model(model: TextModel, weights: Weights, dtype: torch.dtype | None) -> TextModel:
    """Fill a transformers text model built on the meta device; names may have the `text_model.` prefix or not.

    Raises:
        CheckpointError: names or shapes do not fit, or a weight is no finite number.
    """
    names = {bare(name): name for name in model.state_dict()}
    found = {names.get(bare(name), bare(name)): stored for name, stored in weights.tensors.items()}
    for name in IGNORED - names.keys():
        found.pop(name, None)
    fill(model, Weights(weights.source, found), dtype)
    for module in model.modules():  # the one buffer that is in no file
        if isinstance(positions := getattr(module, "position_ids", None), Tensor):
            module.position_ids = torch.arange(positions.shape[-1]).expand(1, -1)
    return model


NOT_OF_THE_MODEL = {"architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path"}
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


def load_tokenizer(folder: Path) -> "CLIPTokenizer":
    """Read a CLIP tokenizer from vocab.json and merges.txt, or from tokenizer.json where those are missing.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    from transformers import CLIPTokenizer

    pair, single = (folder / "vocab.json", folder / "merges.txt"), folder / "tokenizer.json"
    missing = [file.name for file in pair if not file.is_file()]
    if missing and not single.is_file():
        raise CheckpointError(f"{folder}: {' and '.join(missing)} missing, and there is no tokenizer.json instead")
    for file in (folder / "vocab.json", folder / "tokenizer_config.json", single):
        if file.is_file():
            read_json(file)
    try:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise CheckpointError(f"{folder}: not a CLIP tokenizer: {' '.join(str(error).split())[:200]}") from None


def text_state(text_encoder: TextEncoder, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return the text model's tensors under the names every reader knows (`text_model.` prefix), contiguous."""
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
    config |= {"architectures": [kind], "torch_dtype": str(kept).removeprefix("torch.")}
    write_json(target / "config.json", dict(sorted(config.items())))
    write_tensors(target / f"{STEM}.safetensors", tensors, {"format": "pt"})
    save_tokenizer(text_encoder.tokenizer, folder / f"tokenizer{ending}", text_encoder.context_length)


def save_tokenizer(tokenizer: "CLIPTokenizer", folder: Path, context_length: int) -> None:
    """Write the five files of a CLIP tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend |= {"padding": None, "truncation": None}
    vocabulary = tokenizer.get_vocab()
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in backend["model"]["merges"]]
    write_json(folder / "tokenizer.json", backend)
    write_json(folder / "vocab.json", dict(sorted(vocabulary.items(), key=lambda item: item[1])))
    (folder / "merges.txt").write_text("\n".join([TOKENIZER_VERSION, *merges]) + "\n", "utf-8")
    special = {
        name: {
            "content": str(token),
            "lstrip": False,
            "normalized": name != "pad_token",
            "rstrip": False,
            "single_word": False,
        }
        for name, token in (
            ("bos_token", tokenizer.bos_token),
            ("eos_token", tokenizer.eos_token),
            ("unk_token", tokenizer.unk_token),
        )
    }
    write_json(folder / "special_tokens_map.json", {**special, "pad_token": str(tokenizer.pad_token)})
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": str(tokenizer.bos_token),
            "clean_up_tokenization_spaces": True,
            "do_lower_case": True,
            "eos_token": str(tokenizer.eos_token),
            "errors": "replace",
            "model_max_length": context_length,
            "pad_token": str(tokenizer.pad_token),
            "tokenizer_class": "CLIPTokenizer",
            "unk_token": str(tokenizer.unk_token),
        },
    )
