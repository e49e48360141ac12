"""Write a LoRA for other tools, in kohya's keys or in PEFT's.

Readers disagree on where alpha is kept: kohya's have it among the tensors, PEFT's in settings that older ones pass
over. In PEFT's keys we therefore multiply the scale into the factor B, so that alpha = rank, which is what all assume.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from latent_diffusion.adapters.delta import Decomposed, Delta, LowRank
from latent_diffusion.adapters.forms import Update
from latent_diffusion.adapters.keys import TEXT_MODEL, flat
from latent_diffusion.checkpoint.files.safetensors_file import write_tensors
from latent_diffusion.errors import ConfigError

__all__ = ["LoraFormat", "write_lora"]

LoraFormat = Literal["kohya", "peft"]


def write_lora(
    path: Path | str,
    updates: Mapping[str, Mapping[str, Update]],
    layout: LoraFormat = "kohya",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write LoRA or DoRA changes as one safetensors file; tensors keep their dtypes.

    Args:
        path: the file.
        updates: part ("unet", "text_encoder", "text_encoder_2") -> path of the layer below it -> change.
        layout: "kohya" (A1111, ComfyUI, kohya and diffusers read it) or "peft" (diffusers and PEFT).
        metadata: strings for the header, such as kohya's `ss_*` or ModelSpec's fields.

    Raises:
        ConfigError: an unknown layout, or a change of another form.
        ResourceError: the file cannot be written.
    """
    if layout not in ("kohya", "peft"):
        raise ConfigError(f"LoRA layout {layout!r}; there are kohya and peft")
    towers = sum(part.startswith("text_encoder") for part in updates)
    tensors: dict[str, Tensor] = {}
    for part, changes in updates.items():
        for layer, update in changes.items():
            name = layer if part == "unet" else TEXT_MODEL + layer.removeprefix(TEXT_MODEL)
            if layout == "kohya":
                tensors |= _kohya(f"{_kohya_prefix(part, towers)}_{flat(name)}", layer, update)
            else:
                tensors |= _peft(f"{part}.{name}", layer, update)
    write_tensors(path, tensors, metadata)


def _kohya_prefix(part: str, towers: int) -> str:
    names = {"unet": "lora_unet", "text_encoder": "lora_te1" if towers > 1 else "lora_te", "text_encoder_2": "lora_te2"}
    return names[part]


def _kohya(prefix: str, layer: str, update: Update) -> dict[str, Tensor]:
    low, length = _taken_apart(layer, update)
    factors = low.factors
    tensors = {
        f"{prefix}.lora_down.weight": factors.right,
        f"{prefix}.lora_up.weight": factors.left,
        f"{prefix}.alpha": torch.tensor(low.scale * factors.rank),
    }
    if factors.core is not None:
        tensors[f"{prefix}.lora_mid.weight"] = factors.core
    if length is not None:
        tensors[f"{prefix}.dora_scale"] = length.reshape(-1, *[1] * (factors.right.ndim - 1))
    return tensors


def _peft(prefix: str, layer: str, update: Update) -> dict[str, Tensor]:
    low, length = _taken_apart(layer, update)
    if low.factors.core is not None:
        raise ConfigError(f"{layer}: PEFT's layout has no Tucker form; write it in kohya's")
    tensors = {f"{prefix}.lora_A.weight": low.factors.right, f"{prefix}.lora_B.weight": low.scale * low.factors.left}
    if length is not None:
        tensors[f"{prefix}.lora_magnitude_vector"] = (
            length if low.factors.right.ndim == 2 else length.reshape(1, -1, 1, 1)
        )
    return tensors


def _taken_apart(layer: str, update: Update) -> tuple[LowRank, Tensor | None]:
    """Return the product of low rank, and DoRA's lengths of rows."""
    change: Delta | None = update.weight
    length = None
    if isinstance(change, Decomposed) and not change.by_input:
        change, length = change.direction, change.magnitude
    if not isinstance(change, LowRank) or update.bias is not None:
        raise ConfigError(f"{layer}: a change of the form {update.form}; only LoRA and DoRA over rows are written")
    return change, length
