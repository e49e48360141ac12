"""Frozen layers of a network that trains on a CPU: what a layer does to its weights at every call is done once.

    float32     3x3 convolutions by Winograd (native/winograd.c), forward and back, where the channels are few enough
    bfloat16    weights are rounded once, where autocast rounds them at every call; the bits are the same
    bfloat16    3x3 convolutions of small maps by one matrix product with the weights as they lie (columns.py)

A layer y = W x + b whose weights have no gradient hands on dx = W^T dy: for a 3x3 convolution that is one too, with the
kernels turned by 180 degrees and the channels swapped. `weight` stays as it is, beside the prepared ones.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from latent_diffusion.runtime.cpu import columns as small_maps
from latent_diffusion.runtime.cpu.native import winograd
from latent_diffusion.runtime.cpu.native.library import Level, find, level

__all__ = ["FrozenColumns", "FrozenConv2d", "FrozenLinear", "freeze_layers", "winograd_works"]

SAME = ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")  # kernel, stride, padding, dilation, groups and padding mode
WIDEST = 640 * 640  # pairs of channels up to which a convolution is prepared for Winograd: 1.8 times its memory, twice


class _Rounded:
    """A layer with its weight and bias in bfloat16, made at the first call under autocast."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def rounded(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias in bfloat16."""
        if self.weight.dtype == torch.bfloat16:
            return self.weight, self.bias
        if not self.prepared("in_bfloat16"):
            bias = None if self.bias is None else self.bias.detach().bfloat16()
            self.prepare("in_bfloat16", (self.weight.detach().bfloat16(), bias))
        return vars(self)["in_bfloat16"]

    def prepared(self, name: str) -> bool:
        """Whether `name` was made of the weight that is there: a copy of the layer may have got another one."""
        return vars(self).get(f"{name}_of") is self.weight

    def prepare(self, name: str, made: Any) -> None:
        """Keep what was made of the weight."""
        vars(self).update({name: made, f"{name}_of": self.weight})


class FrozenLinear(_Rounded, nn.Linear):
    """x W^T + b."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return F.linear(input, *self.rounded()) if _rounds(input) else super().forward(input)


class FrozenConv2d(_Rounded, nn.Conv2d):
    """Convolution."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H', W')."""
        return self._conv_forward(input, *self.rounded()) if _rounds(input) else super().forward(input)


class FrozenColumns(FrozenConv2d):
    """A 3x3 convolution of stride 1 with zeros around, of small maps by one matrix product in bfloat16."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        if not (_rounds(input) and small_maps.pays(input, self.out_channels)):
            return super().forward(input)
        return small_maps.convolve(input.bfloat16(), *self.rounded())


class FrozenWinograd(FrozenConv2d):
    """A 3x3 convolution of stride 1 with zeros around, with fewer multiplications in float32."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        plain = input.device.type != "cpu" or input.dtype != torch.float32 or input.numel() == 0
        if plain or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        if not self.prepared("panels"):
            turned = self.weight.transpose(0, 1).flip(2, 3)
            self.prepare("panels", [winograd.panels(w, doubled=False) for w in (self.weight, turned)])
        made = _Winograd.apply(input, self)
        assert isinstance(made, Tensor), "one result"
        return made


class _Winograd(torch.autograd.Function):
    """The convolution of a frozen layer, with the gradient of its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenWinograd) -> Tensor:
        ctx.layer = layer
        return winograd.convolve(x, vars(layer)["panels"][0], layer.bias, layer.out_channels, doubled=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        layer = ctx.layer
        return winograd.convolve(gradient, vars(layer)["panels"][1], None, layer.in_channels, doubled=False), None


def winograd_works() -> bool:
    """Whether this process has the kernel that `FrozenWinograd` needs, for AVX2 or AVX-512."""
    return level() >= Level.AVX2 and find("winograd_convolve") is not None


def freeze_layers(module: nn.Module, *, rounded: bool, multiplied_less: bool, columns: bool = False) -> None:
    """Give the frozen layers of `module` prepared weights, in place; parameters and state-dict keys stay.

    Args:
        module: a network; the weights of its frozen layers must not change any more.
        rounded: keep weights in bfloat16 for autocast.
        multiplied_less: use Winograd's algorithm for 3x3 convolutions in float32.
        columns: multiply the columns of small maps in 3x3 convolutions in bfloat16.
    """
    for layer in module.modules():
        if any(p.requires_grad for p in layer.parameters(recurse=False)):
            continue
        if type(layer) is nn.Conv2d and multiplied_less and _fits(layer):
            layer.__class__ = FrozenWinograd
        elif type(layer) is nn.Conv2d and columns and _form(layer) == SAME:
            layer.__class__ = FrozenColumns
        elif type(layer) is nn.Conv2d and rounded:
            layer.__class__ = FrozenConv2d
        elif type(layer) is nn.Linear and rounded:
            layer.__class__ = FrozenLinear


def _fits(layer: nn.Conv2d) -> bool:
    inputs, outputs = layer.in_channels, layer.out_channels
    both = winograd.divides(inputs, outputs) and winograd.divides(outputs, inputs)
    return _form(layer) == SAME and both and inputs * outputs <= WIDEST


def _form(layer: nn.Conv2d) -> tuple[Any, ...]:
    return layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode


def _rounds(input: Tensor) -> bool:
    """Whether autocast is rounding to bfloat16; it rounds the input, too."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
