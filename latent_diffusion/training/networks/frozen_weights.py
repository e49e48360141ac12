"""Frozen weights of a U-Net that trains in bfloat16: one copy, in bfloat16, in place of the float32 one.

Autocast rounds the weight of a linear layer or convolution at every call. Where nothing else reads that weight, it is
rounded once instead, in place: the bits of all outputs and gradients stay, and half of its memory is free. The float32
values are in the model's file; adapters and words, which is what such runs write, do not contain them.

What is read elsewhere stays in float32: norms; the first convolution, whose format is that of x; layers whose changed
weight is formed (DoRA, LoHa, LoKr).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from latent_diffusion.models.unet import UNet
from latent_diffusion.nn.low_rank import Adapted
from latent_diffusion.nn.stored import StoredLayer
from latent_diffusion.runtime.cpu.allocator import give_back_free

__all__ = ["frozen_layers", "in_float32", "round_frozen"]


def frozen_layers(unet: UNet) -> Iterator[nn.Linear | nn.Conv2d]:
    """Yield the frozen layers of `unet`, adapted or not, whose weights nothing reads but their own `forward`."""
    first = unet.conv_in.weight
    read = {one.layer for one in unet.modules() if isinstance(one, Adapted) and one.change.reads_weight}
    for layer in unet.modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d) or isinstance(layer, StoredLayer):
            continue
        if layer in read or layer.weight is first:
            continue
        if not any(parameter.requires_grad for parameter in layer.parameters(recurse=False)):
            yield layer


def round_frozen(unet: UNet) -> None:
    """Round the weights and biases of `frozen_layers` to bfloat16, in place, for all networks that share them."""
    _to(unet, torch.bfloat16)
    give_back_free()


@contextmanager
def in_float32(unet: UNet) -> Iterator[None]:
    """Hold rounded weights in float32 for a while, to compute without autocast; their values stay the rounded ones."""
    rounded = any(layer.weight.dtype == torch.bfloat16 for layer in frozen_layers(unet))
    if rounded:
        _to(unet, torch.float32)
    try:
        yield
    finally:
        if rounded:
            round_frozen(unet)


def _to(unet: UNet, dtype: torch.dtype) -> None:
    for layer in frozen_layers(unet):
        for parameter in layer.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)
