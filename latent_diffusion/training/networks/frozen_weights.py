"""Frozen weights of a U-Net that trains in bfloat16: one copy, in bfloat16, in place of the float32 one.

Autocast rounds the weight of a linear layer or convolution at every call. Where nothing else reads that weight, it is
rounded once instead, in place: the bits of all outputs and gradients stay, and half of its memory is free. The float32
values are in the model's file; adapters and words, which is what such runs write, do not contain them.

What is read elsewhere stays in float32: norms; the first convolution, whose format is that of x; layers whose changed
weight is formed (DoRA, LoHa, LoKr).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from latent_diffusion.models.unet import UNet
from latent_diffusion.nn.low_rank import Adapted
from latent_diffusion.nn.stored import StoredLayer
from latent_diffusion.runtime.cpu.allocator import give_back_free

__all__ = ["each_in_float32", "frozen_layers", "in_float32", "named_float32", "round_frozen"]


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
def in_float32(layer: nn.Module) -> Iterator[None]:
    """Hold the rounded weights of one layer in float32 for a while; their values stay the rounded ones."""
    with _held(_rounded(layer), Tensor.float):
        yield


@contextmanager
def each_in_float32(*networks: nn.Module) -> Iterator[None]:
    """Let every layer hold its rounded weights in float32 while it computes, so one layer at a time."""
    with ExitStack() as hooks:
        for layer in dict.fromkeys(layer for network in networks for layer in network.modules()):
            if _rounded(layer):
                for hook in _around(layer):
                    hooks.callback(hook.remove)
        yield


@contextmanager
def named_float32(network: nn.Module) -> Iterator[None]:
    """Let rounded weights have the dtype float32, but no values, while a library gives its factors their dtype."""
    with _held(
        [p for layer in network.modules() for p in _rounded(layer)], lambda bits: torch.zeros(()).expand(bits.shape)
    ):
        yield


def _around(layer: nn.Module) -> tuple[RemovableHandle, RemovableHandle]:
    """Let `layer` compute within `in_float32`, also where it fails."""
    within: list[AbstractContextManager[None]] = []

    def enter(*_: object) -> None:
        within.append(in_float32(layer))
        within[-1].__enter__()

    def leave(*_: object) -> None:
        within.pop().__exit__(None, None, None)

    return layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave, always_call=True)


def _rounded(layer: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in layer.parameters(recurse=False) if parameter.dtype == torch.bfloat16]


@contextmanager
def _held(parameters: Sequence[nn.Parameter], how: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Give each parameter `how` of its numbers for a while, then its own again."""
    kept = [(parameter, parameter.data) for parameter in parameters]
    for parameter, bits in kept:
        parameter.data = how(bits)
    try:
        yield
    finally:
        for parameter, bits in kept:
            parameter.data = bits


def _to(unet: UNet, dtype: torch.dtype) -> None:
    for layer in frozen_layers(unet):
        for parameter in layer.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)
