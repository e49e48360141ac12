"""3x3 convolutions with their gradient, for training: two of three products take fewer multiplications (winograd.c).

The gradient of the input is the convolution of the result's gradient with the weights turned by 180 degrees, inputs and
outputs exchanged. The gradient of the weights stays oneDNN's. Weights change at every update, so they are transformed
at every call: that is repaid from some thousand pixels of a batch on.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from latent_diffusion.runtime.cpu.native.winograd import convolve, divides, panels

__all__ = ["FasterConv2d", "divisible"]

FEW_PIXELS = 2048  # of a batch: below it the plain convolution takes no longer


def divisible(conv: nn.Conv2d) -> bool:
    """Whether there are kernels for `conv` and its gradient: 3x3, stride 1, zeros around, channels multiples of 32."""
    one = (1, 1)
    square = conv.kernel_size == (3, 3) and conv.stride == conv.padding == conv.dilation == one and conv.groups == 1
    both = divides(conv.in_channels, conv.out_channels) and divides(conv.out_channels, conv.in_channels)
    return square and conv.padding_mode == "zeros" and both


class FasterConv2d(nn.Conv2d):
    """A convolution that `divisible` holds for, with weights that are trained; the result is channels_last."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        fits = input.dim() == 4 and input.shape[1] == self.in_channels and input.device.type == "cpu"
        known = fits and input.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not known or len(input) * input.shape[2:].numel() < FEW_PIXELS:
            return F.conv2d(input, self.weight, self.bias, padding=1)
        made = _Convolution.apply(input, self.weight, self.bias)
        assert isinstance(made, Tensor), "one result"
        return made


class _Convolution(torch.autograd.Function):
    """A 3x3 convolution and its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        ctx.with_bias = bias is not None
        return convolve(x, panels(weight, doubled=False), bias, len(weight), doubled=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        wanted, dx, dw, db = ctx.needs_input_grad, None, None, None
        if wanted[0]:
            turned = weight.flip(2, 3).transpose(0, 1)
            dx = convolve(gradient, panels(turned, doubled=False), None, len(turned), doubled=False)
        if any(wanted[1:]):
            form = [len(weight)] if ctx.with_bias else None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1
            masked = [False, wanted[1], wanted[2]]
            _, dw, db = torch.ops.aten.convolution_backward(gradient, x, weight, *form, masked)
        return dx, dw, db
