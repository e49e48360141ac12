"""The parts of a model that adapters change, by diffusers' names, and a model with some of them replaced."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from latent_diffusion.checkpoint.components import Components
from latent_diffusion.checkpoint.single.compvis_names import unet_names
from latent_diffusion.models.text_encoder import TextEncoder
from latent_diffusion.nn.shared_copy import shared_copy

__all__ = ["original_paths", "parts_of", "tower_names", "unused_layers", "with_parts"]


def tower_names(components: Components) -> dict[str, TextEncoder]:
    """Return the text towers by their names in a diffusers folder; the refiner's only one is the second."""
    towers = components.text_encoder.towers
    if len(towers) == 1:
        return {"text_encoder_2" if towers[0].penultimate else "text_encoder": towers[0]}
    return {"text_encoder" + ("" if k == 0 else f"_{k + 1}"): tower for k, tower in enumerate(towers)}


def parts_of(components: Components) -> dict[str, nn.Module]:
    """Return "unet" and the text models, "text_encoder" and "text_encoder_2", as far as the model has them."""
    return {"unet": components.unet, **{name: tower.model for name, tower in tower_names(components).items()}}


def unused_layers(components: Components, part: str) -> tuple[str, ...]:
    """Return the beginnings of paths in a part that do not reach the U-Net: the last layer of SDXL's first tower."""
    tower = tower_names(components).get(part)
    if tower is None or not tower.penultimate or tower.pooled_width:
        return ()
    return (f"encoder.layers.{tower.config.num_hidden_layers - 1}.", "final_layer_norm.")


def with_parts(components: Components, parts: Mapping[str, Any]) -> Components:
    """Return the model with these modules (named as in `parts_of`) in place of its own."""
    twin = shared_copy(components.text_encoder)
    changed = replace(components, text_encoder=twin)
    for name, tower in tower_names(changed).items():
        tower.model = parts.get(name, tower.model)
    return replace(changed, unet=parts.get("unet", components.unet))


def original_paths(components: Components) -> dict[str, str]:
    """Return the path of each U-Net layer in the original Stable Diffusion code, by its path here."""
    unet = components.unet
    return unet_names(unet.config, [path for path, layer in unet.named_modules() if hasattr(layer, "weight")])
