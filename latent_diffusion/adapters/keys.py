"""Keys of LoRA files -> which layer, which factor; whoever wrote the file.

A key is a layer's path and an ending that names the factor. Writers differ in both:

    kohya            lora_unet_mid_block_attentions_0_proj_in.lora_down.weight    path with _, by diffusers' names ...
                     lora_unet_middle_block_1_proj_in.lora_down.weight            ... or by those of the original code
    diffusers, PEFT  unet.mid_block.attentions.0.proj_in.lora_A.weight
    old diffusers    unet.mid_block.attentions.0...attn1.processor.to_q_lora.down.weight
    ComfyUI          diffusion_model.middle_block.1.proj_in.lora_up.weight
                     text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.lora_up.weight

A path with all dots made _ is one flat word, and it cannot be parsed back; so we flatten the model's own paths in every
spelling, and look the file's up.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["TEXT_MODEL", "Key", "Place", "flat", "read_key", "spellings"]

PREFIXES = {  # of flat paths; the empty one is a file for one part alone
    "unet": ("", "unet_", "lora_unet_", "lycoris_", "diffusion_model_", "model_diffusion_model_", "base_model_model_"),
    "text_encoder": (
        *("", "text_encoder_", "lora_te_", "lora_te1_", "base_model_model_"),
        *("text_encoders_clip_l_transformer_", "text_encoders_clip_h_transformer_"),
    ),
    "text_encoder_2": ("text_encoder_2_", "lora_te2_", "text_encoders_clip_g_transformer_"),
}
TEXT_MODEL = "text_model."  # written by most, left out by transformers 5
OLD_NAMES = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out", "to_out.0": "to_out"}

ENDINGS = {
    "kohya": {"lora_down.weight": "down", "lora_up.weight": "up", "lora_mid.weight": "mid"},
    "PEFT": {
        **{"lora_A.weight": "down", "lora_B.weight": "up"},
        **{"lora_A.default.weight": "down", "lora_B.default.weight": "up"},
        **{"lora_B.bias": "up_bias", "lora_B.default.bias": "up_bias"},
        **{"lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude"},
        **{"lora_magnitude_vector.default.weight": "magnitude", "ia3_l": "ia3", "oft_R.weight": "oft"},
    },
    "old diffusers": {
        **{"lora.down.weight": "down", "lora.up.weight": "up", "lora.up.bias": "up_bias"},
        **{"lora_linear_layer.down.weight": "down", "lora_linear_layer.up.weight": "up"},
    },
    "LyCORIS": {
        **{name: name for name in ("hada_w1_a", "hada_w1_b", "hada_t1", "hada_w2_a", "hada_w2_b", "hada_t2")},
        **{name: name for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b")},
        **{name: name for name in ("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")},
        **{"dora_scale": "dora_scale", "diff": "diff", "diff_b": "diff_b", "w_norm": "diff", "b_norm": "diff_b"},
    },
    "": {"alpha": "alpha"},  # everybody's
}
# longest first: `lora.down.weight` ends other endings too
BY_LENGTH = sorted(
    ((e, field, who) for who, part in ENDINGS.items() for e, field in part.items()), key=lambda e: -len(e[0])
)


@dataclass(frozen=True)
class Place:
    """One layer with a weight."""

    part: str  # "unet", "text_encoder" or "text_encoder_2"
    path: str  # of the module below the part

    def __str__(self) -> str:
        return f"{self.part}.{self.path}"


@dataclass(frozen=True)
class Key:
    """A key of a file, taken apart."""

    path: str  # flat, with the writer's prefix
    field: str  # which factor
    writer: str  # "" where the ending does not tell


def read_key(key: str) -> Key | None:
    """Return the parts of a key; None where the ending is none we know."""
    for ending, field, writer in BY_LENGTH:
        for joint in "._" if ending.startswith("lora.") else ".":  # `to_q_lora.down.weight`
            if key.endswith(joint + ending):
                path = key[: -len(ending) - 1].replace(".processor.", ".")
                return Key(flat(path), field, writer)
    return None


def spellings(parts: Mapping[str, nn.Module], original: Mapping[str, str]) -> dict[str, Place]:
    """Return the layer that each flat path means, for every layer of `parts` and every writer.

    Args:
        parts: "unet", "text_encoder", "text_encoder_2" as far as the model has them.
        original: path of each layer of the U-Net in the original code, by its path here.
    """
    return {
        prefix + flat(spelled): Place(part, path)
        for part, module in parts.items()
        for path, layer in module.named_modules()
        if isinstance(getattr(layer, "weight", None), Tensor)
        for spelled in _names(part, path, original)
        for prefix in PREFIXES[part]
    }


def flat(path: str) -> str:
    """Return a path as one word."""
    return path.replace(".", "_")


def _names(part: str, path: str, original: Mapping[str, str]) -> Iterator[str]:
    """Give every path by which writers know one layer."""
    if part == "unet":
        known = [path] + ([original[path]] if path in original else [])
    else:
        bare = path.removeprefix(TEXT_MODEL)
        known = [bare, TEXT_MODEL + bare]
    yield from known
    for ours, old in OLD_NAMES.items():
        if path.endswith("." + ours):
            yield from (name.removesuffix(ours) + old for name in known)
