"""A published CLIP as the towers that are trained: open-clip's folder, transformers' `CLIPModel`, or a model of ours.

    open-clip      open_clip_config.json, open_clip_model.safetensors
    transformers   config.json (model_type: clip), model.safetensors, preprocessor_config.json
    ours           clip/ and text_encoder/, see `clip_folder.py`

The vocabulary is that of the folder, or CLIP's own where it has none.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_diffusion.checkpoint.files.json_file import read_json
from latent_diffusion.checkpoint.files.weights import Stored, Weights, fill
from latent_diffusion.checkpoint.folder.network_weights import open_weights
from latent_diffusion.checkpoint.folder.open_clip_names import TEXT, VISION, to_open_clip
from latent_diffusion.checkpoint.folder.text_folder import bare
from latent_diffusion.checkpoint.folder.tokenizer_folder import load_tokenizer
from latent_diffusion.checkpoint.folder.vocabulary import clip_vocabulary
from latent_diffusion.errors import CheckpointError
from latent_diffusion.models.clip import CLIPConfig, TowerConfig, TwoTowers
from latent_diffusion.models.tokenizer import Tokenizer

__all__ = ["load_towers", "read_normalisation"]

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""What pictures in [0, 1] are normalised with where a folder does not state it: the values of OpenAI's CLIP."""
CLIP_WORDS = 49408
"""Rows of the token embedding with CLIP's own vocabulary."""
OF_TEXT = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")
"""Beginnings of open-clip's names of the text tower, which has no prefix where both towers are of its first kind."""
TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
VISION_KEYS = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"}
NEUTRAL = {"eos_id": None, "pad_id": None, "hf_tokenizer_name": None, "tokenizer_kwargs": None}
"""Keys of open-clip's configs that do not change the towers."""
POOLED = {"argmax", "eos", "tok"}
"""Kinds of pooling that are one: at the end token, at the class token."""


def load_towers(folder: Path | str) -> tuple[TwoTowers, Tokenizer]:
    """Read a CLIP to train on, float32, on the CPU, in training mode, and its tokenizer.

    Raises:
        CheckpointError: a file is missing or damaged, or the towers are of another kind than CLIP's transformers.
    """
    folder = Path(folder)
    if (folder / "open_clip_config.json").is_file():
        config, weights = _open_clip(folder)
    elif (folder / "clip" / "config.json").is_file():
        weights = open_weights(folder / "clip", "model")
        text = open_weights(folder / "text_encoder", "model")
        named = {f"text_model.{bare(name)}": stored for name, stored in text.tensors.items()}
        config, weights = _transformers(folder / "clip", Weights(weights.source, {**named, **weights.tensors}))
    elif (folder / "config.json").is_file():
        config, weights = _transformers(folder, open_weights(folder, "model"))
    else:
        raise CheckpointError(
            f"{folder}: no CLIP: neither open_clip_config.json nor config.json nor clip/config.json is there"
        )
    tokenizer = _tokenizer(folder, config)
    towers = TwoTowers(config)
    fill(towers.model, weights, torch.float32)
    return towers.train(), tokenizer


def read_normalisation(file: Path, missing: tuple[tuple[float, ...], tuple[float, ...]]) -> Any:
    """Return mean and deviation of pictures in [0, 1] in transformers' `preprocessor_config.json`, else `missing`.

    Raises:
        CheckpointError: the file is damaged.
    """
    values = read_json(file) if file.is_file() else {}
    return tuple(_three(values.get(key, default), file) for key, default in zip(("image_mean", "image_std"), missing))


def _three(values: Any, file: Path) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(isinstance(v, int | float) for v in values):
        raise CheckpointError(f"{file}: {values!r:.60} is not a number for each of three channels")
    return tuple(float(v) for v in values)


def _transformers(folder: Path, weights: Weights) -> tuple[CLIPConfig, Weights]:
    """Return config and weights, under open-clip's names, of transformers' `CLIPModel`."""
    file = folder / "config.json"
    values = read_json(file)
    if values.get("model_type") != "clip":
        raise CheckpointError(f"{file}: model_type is {values.get('model_type')!r}; a `CLIPModel` is of type 'clip'")
    text, vision = values.get("text_config") or {}, values.get("vision_config") or {}
    try:
        acts = {part.get("hidden_act", "quick_gelu") for part in (text, vision)}
        if acts not in ({"quick_gelu"}, {"gelu"}) or {part.get("layer_norm_eps", 1e-5) for part in (text, vision)} != {
            1e-5
        }:
            raise CheckpointError(f"{file}: the towers must both have quick_gelu or gelu, and layer_norm_eps 1e-5")
        ours = folder.name == "clip"
        mean, std = read_normalisation(
            folder / "preprocessor_config.json", ((0.5,) * 3, (0.5,) * 3) if ours else (OPENAI_MEAN, OPENAI_STD)
        )
        config = CLIPConfig(
            text=_tower(text, 512, 8),
            vision=_tower(vision, 768, 12),
            vocab_size=text.get("vocab_size", CLIP_WORDS),
            embed_dim=values.get("projection_dim", 512),
            image_size=vision.get("image_size", 224),
            patch_size=vision.get("patch_size", 32),
            context_length=text.get("max_position_embeddings", 77),
            quick_gelu=acts == {"quick_gelu"},
            image_mean=mean,
            image_std=std,
        )
    except (AttributeError, TypeError) as error:
        raise CheckpointError(f"{file}: not the config of a CLIP: {error}") from None
    found = {name: s.fetch() for name, s in weights.tensors.items() if not name.endswith("position_ids")}
    parts = {
        prefix: {name.removeprefix(prefix): found.pop(name) for name in [*found] if name.startswith(prefix)}
        for prefix in ("text_model.", "vision_model.")
    }
    tensors = {f"text.{name}": t for name, t in to_open_clip(parts["text_model."], TEXT).items()}
    tensors |= {f"visual.{name}": t for name, t in to_open_clip(parts["vision_model."], VISION).items()}
    for here, there in (
        ("text_projection.weight", "text.text_projection"),
        ("visual_projection.weight", "visual.proj"),
    ):
        if here in found:
            tensors[there] = found.pop(here).T.contiguous()
    return config, _stored(weights.source, {**found, **tensors})


def _tower(values: Mapping[str, Any], width: int, heads: int) -> TowerConfig:
    width = values.get("hidden_size", width)
    return TowerConfig(
        width=width,
        layers=values.get("num_hidden_layers", 12),
        heads=values.get("num_attention_heads", heads),
        mlp_ratio=values.get("intermediate_size", 4 * width) / width,
    )


def _open_clip(folder: Path) -> tuple[CLIPConfig, Weights]:
    """Return config and weights of open-clip's folder.

    Raises:
        CheckpointError: a tower is none of CLIP's transformers.
    """
    file = folder / "open_clip_config.json"
    values = read_json(file)
    model, pixels = values.get("model_cfg") or {}, values.get("preprocess_cfg") or {}
    text, vision = model.get("text_cfg") or {}, model.get("vision_cfg") or {}
    try:
        _check_plain(file, "text_cfg", text, TEXT_KEYS)
        _check_plain(file, "vision_cfg", vision, VISION_KEYS)
        width = vision.get("width", 768)
        config = CLIPConfig(
            text=TowerConfig(
                text.get("width", 512), text.get("layers", 12), text.get("heads", 8), text.get("mlp_ratio", 4.0)
            ),
            vision=TowerConfig(
                width, vision.get("layers", 12), width // vision.get("head_width", 64), vision.get("mlp_ratio", 4.0)
            ),
            vocab_size=text.get("vocab_size", CLIP_WORDS),
            embed_dim=model["embed_dim"],
            image_size=vision.get("image_size", 224),
            patch_size=vision.get("patch_size", 16),
            context_length=text.get("context_length", 77),
            quick_gelu=bool(model.get("quick_gelu", False)),
            image_mean=_three(pixels.get("mean", OPENAI_MEAN), file),
            image_std=_three(pixels.get("std", OPENAI_STD), file),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not the config of a CLIP: {error}") from None
    stem = next(
        (s for s in ("open_clip_model", "open_clip_pytorch_model") if any(folder.glob(f"{s}.*"))), "open_clip_model"
    )
    weights = open_weights(folder, stem)
    return config, Weights(
        weights.source,
        {f"text.{name}" if name.startswith(OF_TEXT) else name: stored for name, stored in weights.tensors.items()},
    )


def _check_plain(file: Path, part: str, values: Mapping[str, Any], known: set[str]) -> None:
    """Refuse a tower with anything that changes it beyond its sizes."""
    pooling = values.get("pool_type", "tok")
    strange = [key for key, value in values.items() if value and key not in {*known, *NEUTRAL, "pool_type"}]
    strange += [] if pooling in POOLED else ["pool_type"]
    strange += [] if isinstance(values.get("layers", 12), int) else ["layers"]
    if strange:
        raise CheckpointError(f"{file}: {part} has {', '.join(strange)}; only CLIP's plain transformers are trained")


def _tokenizer(folder: Path, config: CLIPConfig) -> Tokenizer:
    """Return the tokenizer of a folder; its end token must have the largest id, at which texts are pooled."""
    places = [place for place in (folder / "tokenizer", folder) if any((place / n).is_file() for n in FILES)]
    if not places and config.vocab_size != CLIP_WORDS:
        raise CheckpointError(
            f"{folder}: no tokenizer (vocab.json and merges.txt, or tokenizer.json), and its vocabulary of "
            f"{config.vocab_size} is not CLIP's"
        )
    tokenizer = load_tokenizer(places[0]) if places else clip_vocabulary("<|endoftext|>", config.context_length)
    if tokenizer.eos_token_id != config.vocab_size - 1:
        raise CheckpointError(
            f"{folder}: the end token's id is {tokenizer.eos_token_id}, but must be the largest of {config.vocab_size}"
        )
    return tokenizer


FILES = ("vocab.json", "tokenizer.json")


def _stored(source: Path, tensors: Mapping[str, Tensor]) -> Weights:
    return Weights(source, {name: Stored.of(tensor) for name, tensor in tensors.items()})
