"""The frozen layers of a model under an adapter or learned words, in fewer bits or on the host.

The results of such runs hold none of these weights: an adapter is for the exact weights of the model's file.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latent_diffusion.adapters.model_parts import parts_of
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.config import MemoryConfig
from latent_diffusion.nn.stored import StoredLayer, store
from latent_diffusion.runtime.cpu.allocator import give_back_free
from latent_diffusion.runtime.precision import layout

__all__ = ["is_stored", "store_base"]

AS_THEY_ARE = ("conv_in", "conv_out")
"""The first and the last layer of a U-Net are not stored: they have few weights, and every output depends on them."""


def store_base(
    models: Sequence[Components], parts: Sequence[str], memory: MemoryConfig, precision: str, device: torch.device
) -> None:
    """Replace the frozen layers by stored ones, in the format and the place that `memory` names, if it names any.

    Args:
        models: the model of the file, and the model that computes; the two share their tensors.
        parts: the networks by diffusers' names: "unet", and text encoders that compute in every update.
        memory: the format and the place.
        precision: of the run.
        device: where the run computes.
    """
    rounded_anyway = memory.base == "bfloat16" and precision == "bfloat16"
    if not memory.base_on_host and (memory.base is None or rounded_anyway):
        return
    form = memory.base or ("bfloat16" if precision == "bfloat16" else "float32")
    place = torch.device("cpu") if memory.base_on_host else device
    sharing = _frozen(models, parts)
    while sharing:
        weight, layers = sharing.popitem()  # freed before the next one is read
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=layout(device, precision))
        store(layers, form, place)
        del weight, layers
    give_back_free()


def _frozen(models: Sequence[Components], parts: Sequence[str]) -> dict[Tensor, list[nn.Linear | nn.Conv2d]]:
    """Return the frozen layers by their weight; several layers, each of another model, can share one."""
    found: dict[Tensor, dict[nn.Linear | nn.Conv2d, None]] = {}
    for model in models:
        for network in (network for part, network in parts_of(model).items() if part in parts):
            for path, layer in network.named_modules():
                if not isinstance(layer, nn.Linear | nn.Conv2d) or isinstance(layer, StoredLayer):
                    continue
                if path.split(".")[0] not in AS_THEY_ARE and not layer.weight.requires_grad:
                    found.setdefault(layer.weight, {})[layer] = None
    return {weight: list(layers) for weight, layers in found.items()}


def is_stored(model: Components) -> bool:
    """Return whether frozen layers of the U-Net are stored."""
    return any(isinstance(layer, StoredLayer) for layer in model.unet.modules())
