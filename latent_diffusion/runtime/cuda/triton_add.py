"""The sum of two channels_last maps and of the biases of the convolutions they come from, in Triton.

Torch adds a convolution's bias in a pass of its own; here it costs nothing.
"""

# Triton reads annotations its own way: a constexpr is given as a plain value, a tensor may start as a number.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["add"]

PIXELS = tl.constexpr(32)  # of a tile
FUSED = {"enable_fp_fusion": True}  # multiply-adds rounded once; the default differs between versions of Triton
CHANNELS = tl.constexpr(64)  # of a tile


@triton.jit(do_not_specialize=["pixels"])
def _add(x, y, bias, other, out, pixels, channels, HAS_OTHER: tl.constexpr):
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    here = (p < pixels)[:, None] & (c < channels)[None, :]
    place = p.to(tl.int64)[:, None] * channels + c[None, :]
    constant = tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)
    if HAS_OTHER:
        constant += tl.load(other + c, mask=c < channels, other=0.0).to(tl.float32)
    total = tl.load(x + place, mask=here, other=0.0).to(tl.float32) + constant[None, :]
    total += tl.load(y + place, mask=here, other=0.0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=here)


def add(x: Tensor, y: Tensor, bias: Tensor, other: Tensor | None = None) -> Tensor:
    """Return x + y + bias + other (B, C, H, W), channels_last; see `fusions.Add`."""
    x, y = (v.contiguous(memory_format=torch.channels_last) for v in (x, y))
    batch, channels, height, width = x.shape
    pixels = batch * height * width  # of the whole batch: the biases are the same for all
    out = torch.empty_like(x)
    grid = (triton.cdiv(pixels, PIXELS.value), triton.cdiv(channels, CHANNELS.value))
    with torch.cuda.device_of(x):
        _add[grid](
            x, y, bias, bias if other is None else other, out, pixels, channels, HAS_OTHER=other is not None, **FUSED
        )
    return out
