"""Names of tensors of a text or image tower in open-clip for those in transformers.

open-clip keeps query, key and value of an attention in one tensor, stacked on its rows; transformers has three.
Source of the names: github.com/mlfoundations/open_clip, src/open_clip/transformer.py.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from latent_diffusion.checkpoint.files.weights import Stored

__all__ = ["TEXT", "VISION", "from_open_clip", "to_open_clip"]

BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
TEXT = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
VISION = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
STACKED = ("q_proj", "k_proj", "v_proj")  # the order of the rows
PROJECTION = "text_projection"  # there a matrix (D, P) multiplied from the right, here a linear layer (P, D)


def from_open_clip(tower: Mapping[str, Stored], outside: Mapping[str, str]) -> dict[str, Stored]:
    """Return a tower's tensors under transformers' names; unknown names stay, so that a check can tell.

    Args:
        tower: open-clip's tensors by name.
        outside: names of the tensors outside the blocks, `TEXT` or `VISION`.
    """
    result: dict[str, Stored] = {}
    for name, stored in tower.items():
        layer, kind = _layer(name)
        if name in outside:
            result[outside[name]] = stored
        elif name == PROJECTION:
            result["text_projection.weight"] = stored.viewed(stored.shape[::-1], lambda t: t.T.contiguous())
        elif layer and kind.startswith("attn.in_proj_"):
            rows = stored.shape[0] // 3
            for index, part in enumerate(STACKED):
                first = index * rows
                piece = stored.viewed((rows, *stored.shape[1:]), lambda t, a=first, b=first + rows: t[a:b].clone())
                result[f"{layer}.self_attn.{part}.{kind.removeprefix('attn.in_proj_')}"] = piece
        elif layer and kind.rpartition(".")[0] in BLOCK:
            module, _, last = kind.rpartition(".")
            result[f"{layer}.{BLOCK[module]}.{last}"] = stored
        else:
            result[name] = stored
    return result


def to_open_clip(tower: Mapping[str, Tensor], names: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """Return a tower's tensors, under transformers' bare names, under open-clip's: the inverse, also of unknown names.

    Args:
        tower: tensors by name.
        names: those outside the blocks, `TEXT` (None) or `VISION`.
    """
    outside = {here: there for there, here in (TEXT if names is None else names).items()}
    block = {here: there for there, here in BLOCK.items()}
    result: dict[str, Tensor] = {}
    for name, tensor in tower.items():
        if name in outside:
            result[outside[name]] = tensor
        elif name == "text_projection.weight":
            result[PROJECTION] = tensor.T.contiguous()
        elif not name.startswith("encoder.layers."):
            result[name] = tensor
        else:
            number, _, rest = name.removeprefix("encoder.layers.").partition(".")
            module, _, last = rest.rpartition(".")
            place = f"transformer.resblocks.{number}"
            if module.removeprefix("self_attn.") not in STACKED:
                result[f"{place}.{block[module]}.{last}"] = tensor
            elif module == "self_attn.q_proj":
                parts = [tower[f"encoder.layers.{number}.self_attn.{part}.{last}"] for part in STACKED]
                result[f"{place}.attn.in_proj_{last}"] = torch.cat(parts)
    return result


def _layer(name: str) -> tuple[str, str]:
    """Return transformers' name of the block that a tensor lies in, and the rest; ("", name) outside the blocks."""
    start = "transformer.resblocks."
    if not name.startswith(start):
        return "", name
    number, _, rest = name.removeprefix(start).partition(".")
    return f"encoder.layers.{number}", rest
