"""Write an adapter for other tools, in kohya's keys (with LyCORIS's for LoHa and LoKr) or in PEFT's.

Readers disagree on where alpha is kept: kohya's have it among the tensors, PEFT's in settings that older ones pass
over. In PEFT's keys we therefore multiply the scale into the factor B, so that alpha = rank, which is what all assume.
They have none for a whole change, and diffusers refuses a file with another key; there it is a LoRA of full rank.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from latent_diffusion.adapters.delta import Decomposed, Hadamard, Kronecker, LowRank, Product
from latent_diffusion.adapters.forms import Update
from latent_diffusion.adapters.keys import TEXT_MODEL, flat
from latent_diffusion.checkpoint.files.safetensors_file import write_tensors
from latent_diffusion.errors import ConfigError

__all__ = ["LoraFormat", "factors_of", "write_factors", "write_lora"]

LoraFormat = Literal["kohya", "peft"]

KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
"""Endings of kohya's keys, by factor; LyCORIS's factors end in their own names."""


def write_lora(
    path: Path | str,
    updates: Mapping[str, Mapping[str, Update]],
    layout: LoraFormat = "kohya",
    metadata: Mapping[str, str] | None = None,
    towers: int | None = None,
) -> None:
    """Write the changes of a model's layers as one safetensors file; tensors keep their dtypes.

    Args:
        path: the file.
        updates: part ("unet", "text_encoder", "text_encoder_2") -> path of the layer below it -> change.
        layout: "kohya" (A1111, ComfyUI, kohya and diffusers read it; every form) or "peft" (diffusers and PEFT; LoRA
            and DoRA).
        metadata: strings for the header, such as kohya's `ss_*` or ModelSpec's fields.
        towers: text encoders of the model, which decides kohya's name of the first one; None = as many as are changed.

    Raises:
        ConfigError: an unknown layout, or a change that it has no keys for.
        ResourceError: the file cannot be written.
    """
    factors = {
        part: {layer: factors_of(layer, update) for layer, update in changes.items()}
        for part, changes in updates.items()
    }
    write_factors(path, factors, layout, metadata, towers)


def write_factors(
    path: Path | str,
    factors: Mapping[str, Mapping[str, Mapping[str, Tensor]]],
    layout: LoraFormat = "kohya",
    metadata: Mapping[str, str] | None = None,
    towers: int | None = None,
) -> None:
    """Write the factors of each layer, by the names that `forms.update_of` reads; otherwise as `write_lora`."""
    if layout not in ("kohya", "peft"):
        raise ConfigError(f"LoRA layout {layout!r}; there are kohya and peft")
    towers = sum(part.startswith("text_encoder") for part in factors) if towers is None else towers
    tensors: dict[str, Tensor] = {}
    for part, layers in factors.items():
        for layer, fields in layers.items():
            below = part != "unet" and layer != "text_projection"  # which lies beside the body of a tower
            name = TEXT_MODEL + layer.removeprefix(TEXT_MODEL) if below else layer
            if layout == "kohya":
                prefix = f"{_kohya_prefix(part, towers)}_{flat(name)}"
                tensors |= {f"{prefix}.{KOHYA.get(field, field)}": tensor for field, tensor in fields.items()}
            else:
                tensors |= _peft(f"{part}.{name}", layer, fields)
    write_tensors(path, tensors, metadata)


def factors_of(layer: str, update: Update) -> dict[str, Tensor]:
    """Return the factors of a change by the names that `forms.update_of` reads; `layer` is for messages.

    Raises:
        ConfigError: a change of a form that files do not hold.
    """
    change, length = update.weight, None
    if update.bias is not None:
        raise ConfigError(f"{layer}: a change of a bias is not written")
    if isinstance(change, Decomposed):
        if change.by_input:
            raise ConfigError(f"{layer}: DoRA with a length for each input is not written")
        change, length = change.direction, change.magnitude
    if isinstance(change, LowRank):
        fields = _product(change.factors, "up", "down", "mid") | _alpha(change.scale * change.factors.rank)
        kernel = change.factors.right.ndim - 2
    elif isinstance(change, Hadamard):
        fields, kernel = _alpha(change.scale * change.first.rank), 0
        for number, product in (("1", change.first), ("2", change.second)):
            fields |= _product(product, f"hada_w{number}_a", f"hada_w{number}_b", f"hada_t{number}")
    elif isinstance(change, Kronecker):
        ranks = [part.rank for part in (change.second, change.first) if isinstance(part, Product)]
        if not ranks and change.scale != 1.0:
            raise ConfigError(f"{layer}: a LoKr of two whole factors has scale 1 in files, not {change.scale:g}")
        fields, kernel = _alpha(change.scale * ranks[0] if ranks else 1.0), 0
        for number, part in (("1", change.first), ("2", change.second)):
            if isinstance(part, Product):
                fields |= _product(part, f"lokr_w{number}_a", f"lokr_w{number}_b", f"lokr_t{number}")
            else:
                fields[f"lokr_w{number}"] = part
    else:
        raise ConfigError(f"{layer}: a change of the form {update.form}; only LoRA, LoHa, LoKr and DoRA are written")
    return fields if length is None else fields | {"dora_scale": length.reshape(-1, 1, *[1] * kernel)}


def _alpha(alpha: float) -> dict[str, Tensor]:
    return {"alpha": torch.tensor(alpha)}


def _product(product: Product, left: str, right: str, core: str) -> dict[str, Tensor]:
    if product.core is None:
        return {left: product.left, right: product.right}
    first = product.left if core == "mid" else product.left.T  # beside a core, LyCORIS's left factors are (r, O)
    return {left: first, right: product.right, core: product.core}


def _kohya_prefix(part: str, towers: int) -> str:
    names = {"unet": "lora_unet", "text_encoder": "lora_te1" if towers > 1 else "lora_te", "text_encoder_2": "lora_te2"}
    return names[part]


def _peft(prefix: str, layer: str, fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not ({"down", "diff"} & fields.keys()) or "mid" in fields:
        raise ConfigError(f"{layer}: PEFT's layout has no keys for {', '.join(sorted(fields))}; write it in kohya's")
    if "diff" in fields:
        fields = _of_full_rank(fields["diff"])
    down, up = fields["down"], fields["up"]
    scale = float(fields["alpha"]) / down.shape[0]
    tensors = {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": scale * up}
    if "dora_scale" in fields:
        length = fields["dora_scale"].flatten()
        tensors[f"{prefix}.lora_magnitude_vector"] = length if down.ndim == 2 else length.reshape(1, -1, 1, 1)
    return tensors


def _of_full_rank(change: Tensor) -> dict[str, Tensor]:
    """Return the factors of LoRA whose product is the change (O, I, k, k) exactly: one of them is the identity."""
    matrix, rank = change.flatten(1), min(change.flatten(1).shape)
    one = torch.eye(rank, dtype=change.dtype)
    up, down = (matrix, one) if rank == matrix.shape[1] else (one, matrix)
    up, down = up.reshape(len(change), rank, *[1] * (change.ndim - 2)), down.reshape(rank, *change.shape[1:])
    return {"up": up.contiguous(), "down": down.contiguous(), "alpha": torch.tensor(float(rank))}
