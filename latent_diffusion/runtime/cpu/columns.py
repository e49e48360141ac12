"""A frozen 3x3 convolution of a small map in bfloat16, as one matrix product of its weights as they lie in memory.

    y = W columns(x),    dx = columns^T(W^T dy),    W (O, I * 9), columns(x) (I * 9, pixels)

oneDNN brings weights into an order of its own at every call. Where they are many and pixels few, that takes longer than
the product: 2560 -> 1280 channels on 8x8 pixels 60 ms, 62 ms back; as a product 22 and 30 (one thread, AVX-512).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["convolve", "pays"]

MOST_PIXELS = 64  # of all maps of the batch
FEWEST_WEIGHTS = 1280 * 1280 * 9


def pays(input: Tensor, outputs: int) -> bool:
    """Whether the product is the faster way for a map (B, C, H, W) and a 3x3 convolution to `outputs` channels."""
    pixels = input.numel() // max(input.shape[1], 1)
    return 0 < pixels <= MOST_PIXELS and input.shape[1] * outputs * 9 >= FEWEST_WEIGHTS


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve x (B, I, H, W) with `weight` (O, I, 3, 3), stride 1, zeros around; return (B, O, H, W)."""
    made = _Columns.apply(x, weight.detach())
    assert isinstance(made, Tensor), "one result"
    return made if bias is None else made + bias.detach()[:, None, None]


class _Columns(torch.autograd.Function):
    """The product, with the gradient of x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        batch, _, height, width = x.shape
        columns = F.unfold(x, 3, padding=1).transpose(0, 1).flatten(1)  # (I * 9, B * pixels)
        return torch.mm(weight.flatten(1), columns).unflatten(1, (batch, height, width)).transpose(0, 1).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        batch, _, height, width = gradient.shape
        rows = gradient.transpose(0, 1).flatten(1)  # (O, B * pixels)
        columns = torch.mm(ctx.weight.flatten(1).t(), rows).unflatten(1, (batch, -1)).transpose(0, 1)
        summed = F.fold(columns.float(), (height, width), 3, padding=1)  # nine terms, which bfloat16 would round
        return summed.to(gradient.dtype), None
