"""A trained CLIP <-> `text_encoder/`, `tokenizer/` and `clip/` of a model folder.

`clip/` holds what the text encoder's folder does not: the image tower, both projections and the logit scale, under the
names and in the config of transformers' `CLIPModel`. With the tensors of `text_encoder/` added it is one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_diffusion.checkpoint.files.json_file import read_json, write_json
from latent_diffusion.checkpoint.files.safetensors_file import read_tensors, write_tensors
from latent_diffusion.checkpoint.files.weights import Stored, Weights, check_fit
from latent_diffusion.checkpoint.folder.clip_towers import load_towers, read_normalisation
from latent_diffusion.checkpoint.folder.open_clip_names import TEXT, VISION, from_open_clip
from latent_diffusion.checkpoint.folder.text_folder import (
    PREFIX,
    load_text_encoder,
    save_text_encoder,
    text_config,
    text_state,
)
from latent_diffusion.checkpoint.folder.tokenizer_folder import save_tokenizer
from latent_diffusion.errors import CheckpointError
from latent_diffusion.models.clip import CLIP, CLIPConfig, TwoTowers
from latent_diffusion.models.clip_text import CLIPTextConfig, CLIPTextModel
from latent_diffusion.models.text_encoder import TextEncoder
from latent_diffusion.models.tokenizer import Tokenizer

__all__ = ["from_towers", "has_clip", "load_clip", "open_clip", "save_clip"]

WEIGHTS = "model.safetensors"
VISION_KEYS = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size"),
    *("patch_size", "num_channels", "projection_dim", "hidden_act", "layer_norm_eps", "attention_dropout"),
)


def from_towers(towers: TwoTowers, tokenizer: Tokenizer) -> CLIP:
    """Return copies of trained towers in the modules they are used in, float32, on the CPU, in evaluation mode."""
    from transformers import CLIPVisionModelWithProjection

    state = {name: tensor.detach().float().cpu() for name, tensor in towers.model.state_dict().items()}
    text = {name.removeprefix("text."): tensor for name, tensor in state.items() if name.startswith("text.")}
    vision = {name.removeprefix("visual."): tensor for name, tensor in state.items() if name.startswith("visual.")}
    text_projection, image_projection = text.pop("text_projection"), vision.pop("proj")

    model = CLIPTextModel(_text_config(towers.config))
    wanted = {name.removeprefix("text_model."): name for name in model.state_dict()}
    model.load_state_dict({wanted[name]: tensor for name, tensor in _renamed(text, TEXT).items()})
    image_tower = CLIPVisionModelWithProjection(_vision_config(towers.config))
    image_tower.load_state_dict(
        {f"vision_model.{name}": tensor for name, tensor in _renamed(vision, VISION).items()}
        | {"visual_projection.weight": image_projection.T}
    )
    clip = CLIP(TextEncoder(model, tokenizer), image_tower)
    with torch.no_grad():
        clip.text_projection.weight.copy_(text_projection.T)
        clip.logit_scale.copy_(towers.logit_scale)
    clip.image_mean, clip.image_std = towers.config.image_mean, towers.config.image_std
    return clip.eval()


def _renamed(tower: dict[str, Tensor], outside: Mapping[str, str]) -> dict[str, Tensor]:
    stored = {name: Stored.of(tensor) for name, tensor in tower.items()}
    return {name: piece.fetch() for name, piece in from_open_clip(stored, outside).items()}


def _text_config(config: CLIPConfig) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.text.width,
        intermediate_size=int(config.text.width * config.text.mlp_ratio),
        num_hidden_layers=config.text.layers,
        num_attention_heads=config.text.heads,
        max_position_embeddings=config.context_length,
        projection_dim=config.embed_dim,
        hidden_act=config.hidden_act,
        bos_token_id=config.vocab_size - 2,
        eos_token_id=config.vocab_size - 1,
        pad_token_id=config.vocab_size - 1,
    )


def _vision_config(config: CLIPConfig) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=config.vision.width,
        intermediate_size=int(config.vision.width * config.vision.mlp_ratio),
        num_hidden_layers=config.vision.layers,
        num_attention_heads=config.vision.heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        projection_dim=config.embed_dim,
        hidden_act=config.hidden_act,
    )


def save_clip(
    clip: CLIP, folder: Path | str, dtype: torch.dtype | None = torch.float16, *, whole: bool = False
) -> None:
    """Write `text_encoder/` and `tokenizer/` as they are, and `clip/` in `dtype`; None keeps the weights' own.

    With `whole` the text tower and the vocabulary lie in `clip/` too: it is a folder of transformers' `CLIPModel`.
    """
    folder = Path(folder)
    save_text_encoder(clip.text_encoder, folder)
    state = clip.vision.state_dict() | {"text_projection.weight": clip.text_projection.weight.detach()}
    tensors = {name: tensor.cpu().to(dtype or tensor.dtype).contiguous() for name, tensor in state.items()}
    tensors["logit_scale"] = clip.logit_scale.float().cpu().log()
    if whole:
        tensors |= text_state(clip.text_encoder, dtype)
        save_tokenizer(clip.text_encoder.tokenizer, folder / "clip", clip.text_encoder.context_length)
    (folder / "clip").mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": clip.vision.config.projection_dim,
        "logit_scale_init_value": float(tensors["logit_scale"]),
        "text_config": text_config(clip.text_encoder),
        "vision_config": {name: getattr(clip.vision.config, name) for name in VISION_KEYS},
    }
    write_json(folder / "clip" / "config.json", config)
    pixels = {"image_mean": list(clip.image_mean), "image_std": list(clip.image_std), "size": clip.image_size}
    kind = {"image_processor_type": "CLIPImageProcessor", "crop_size": clip.image_size}
    write_json(folder / "clip" / "preprocessor_config.json", kind | pixels)
    write_tensors(folder / "clip" / WEIGHTS, tensors, {"format": "pt"})


def load_clip(folder: Path | str) -> CLIP:
    """Read the CLIP of a model folder from its `clip/`, `text_encoder/` and `tokenizer/`.

    Returns:
        The model in evaluation mode, on the CPU, in float32.

    Raises:
        CheckpointError: a file is missing or damaged, or the parts do not fit together.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = Path(folder)
    file = folder / "clip" / WEIGHTS
    values = read_json(folder / "clip" / "config.json")
    try:
        vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**_known(values["vision_config"])))
    except Exception as error:  # the strict configs of transformers raise their own kind
        why = " ".join(str(error).split())
        raise CheckpointError(f"{folder / 'clip' / 'config.json'}: not a CLIP config: {why}") from None
    clip = CLIP(load_text_encoder(folder), vision)
    normalisation = read_normalisation(folder / "clip" / "preprocessor_config.json", ((0.5,) * 3, (0.5,) * 3))
    clip.image_mean, clip.image_std = normalisation
    found = {name: tensor for name, tensor in read_tensors(file).items() if not name.startswith(PREFIX)}
    names = {name: name for name in vision.state_dict() if not name.endswith("position_ids")}
    wanted = {name: vision.state_dict()[name].shape for name in names}
    wanted |= {"text_projection.weight": clip.text_projection.weight.shape, "logit_scale": torch.Size(())}
    check_fit(Weights(file, {name: Stored.of(tensor) for name, tensor in found.items()}), wanted)
    vision.load_state_dict({name: found[name].float() for name in names}, strict=False)
    with torch.no_grad():
        clip.text_projection.weight.copy_(found["text_projection.weight"])
        clip.logit_scale.copy_(found["logit_scale"].float().exp())
    return clip.eval()


def has_clip(folder: Path | str) -> bool:
    """Return whether a model folder has a CLIP of its own."""
    return (Path(folder) / "clip").is_dir()


def open_clip(folder: Path | str) -> CLIP:
    """Read a CLIP from a model folder that has one, or from transformers' or open-clip's folder of one.

    Raises:
        CheckpointError: there is none, a file is missing or damaged, or the parts do not fit together.
    """
    return load_clip(folder) if has_clip(folder) else from_towers(*load_towers(folder))


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in VISION_KEYS if name in values and name != "model_type"}
