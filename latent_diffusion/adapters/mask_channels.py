"""A plain U-Net that also reads other channels, as a mask and the picture around it, and the adapters made for it.

A plain U-Net reads the C channels of the noisy latents; an inpainting U-Net reads 2 C + 1: these, the mask, and the
latents of the masked picture. Where one is made of the other, the weights of the new channels are zero, so that it
draws what the plain one draws (the start of the published inpainting models:
huggingface.co/runwayml/stable-diffusion-inpainting, "Training"). An inpainting adapter changes layers of this U-Net,
its first convolution as a whole:

    W' = [W, 0] + s * diff,   W (O, C, k, k),   diff (O, 2 C + 1, k, k),   s the adapter's strength
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_diffusion.adapters.delta import Delta
from latent_diffusion.adapters.forms import Update
from latent_diffusion.checkpoint.components import Components
from latent_diffusion.nn.shared_copy import shared_copy
from latent_diffusion.runtime.cpu.packing import unpack

__all__ = [
    "FIRST",
    "MODEL_ADAPTER",
    "changes_mask_channels",
    "model_adapter",
    "on_latents",
    "with_mask_channels",
    "with_more_channels",
]

FIRST = "conv_in"
"""Path of the first convolution in the U-Net."""

MODEL_ADAPTER = "inpainting_adapter.safetensors"
"""Name of the inpainting adapter in a model's folder, which `inpaint` uses by itself."""


def with_mask_channels(components: Components) -> Components:
    """Return a model whose U-Net reads C channels with one that reads 2 C + 1; all other tensors are shared."""
    return with_more_channels(components, components.autoencoder.config.latent_channels + 1)


@torch.no_grad()
def with_more_channels(components: Components, count: int) -> Components:
    """Return a model with a U-Net that reads `count` channels more, with weights of zero; other tensors are shared."""
    unet = shared_copy(components.unet)
    old = unet.conv_in
    unpack(old)
    channels = old.in_channels + count
    new = nn.Conv2d(channels, old.out_channels, old.kernel_size, padding=old.padding, device="meta")  # type: ignore[arg-type]
    added = old.weight.new_zeros(old.out_channels, count, *old.kernel_size)
    new.weight = nn.Parameter(torch.cat([old.weight, added], dim=1), requires_grad=old.weight.requires_grad)
    new.bias = old.bias
    unet.conv_in = new
    unet.config = replace(unet.config, in_channels=channels)
    return replace(components, unet=unet)


def changes_mask_channels(factors: Mapping[str, Tensor], components: Components) -> bool:
    """Return whether a file's change of the first convolution is that of an inpainting adapter for this plain model.

    It is a whole one (`diff`, or LoRA of full rank) for 2 C + 1 channels. One of low rank was made for a U-Net that
    reads a mask already, and adds to weights that a plain model does not have.
    """
    channels = components.autoencoder.config.latent_channels
    change = factors.get("diff", factors.get("down"))
    if components.unet.config.in_channels != channels or change is None or change.ndim != 4:
        return False
    rank = min(components.unet.conv_in.out_channels, change[0].numel())
    return change.shape[1] == 2 * channels + 1 and ("diff" in factors or len(change) == rank)


@dataclass(frozen=True)
class _OnLatents:
    """A change of the weights of the noisy latents, in a convolution that reads a mask too."""

    shape: tuple[int, int]
    change: Delta  # of the convolution that reads the latents alone

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the change of the first columns, and zeros."""
        columns = self.change.shape[1]
        return F.pad(self.change.matrix(weight[:, :columns]), (0, self.shape[1] - columns))


def on_latents(updates: Mapping[str, Update], weight: Tensor) -> Mapping[str, Update]:
    """Return the U-Net's updates of an adapter for a plain model, for a first `weight` (O, 2 C + 1, k, k)."""
    update = updates.get(FIRST)
    if update is None or update.weight is None:
        return updates
    shape = len(weight), weight[0].numel()
    return {**updates, FIRST: replace(update, weight=_OnLatents(shape, update.weight))}


def model_adapter(components: Components) -> Path | None:
    """Return the inpainting adapter in the folder that a model was read from; None where there is none."""
    file = None if components.source is None else components.source / MODEL_ADAPTER
    return file if file is not None and file.is_file() else None
