"""GEGLU in one pass over memory, in Triton.

    y = value * gelu(gate),   gelu(g) = g / 2 (1 + erf(g / sqrt(2)))

Reference: Shazeer 2020, arXiv:2002.05202, eq. (6), with the exact GELU of arXiv:1606.08415.
"""

# Triton reads annotations its own way, and takes options beside the arguments.
# pyright: reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["geglu"]

TOKENS = tl.constexpr(4)  # of a tile
FUSED = {"enable_fp_fusion": True}  # multiply-adds rounded once; the default differs between versions of Triton
CHANNELS = tl.constexpr(256)  # of a tile; divides the hidden widths of all published models


@triton.jit(do_not_specialize=["tokens"])
def _geglu(x, y, tokens, hidden):
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    here = (token < tokens)[:, None] & (c < hidden)[None, :]
    place = token.to(tl.int64)[:, None] * hidden
    value = tl.load(x + 2 * place + c[None, :], mask=here, other=0.0).to(tl.float32)
    gate = tl.load(x + 2 * place + hidden + c[None, :], mask=here, other=0.0).to(tl.float32)
    gelu = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(y + place + c[None, :], (value * gelu).to(y.dtype.element_ty), mask=here)


def geglu(x: Tensor) -> Tensor:
    """Map (..., 2 D) to (..., D), contiguous, in the dtype of `x`."""
    x = x.contiguous()
    hidden = x.shape[-1] // 2
    y = x.new_empty((*x.shape[:-1], hidden))
    tokens = x.numel() // x.shape[-1]
    with torch.cuda.device_of(x):
        _geglu[(triton.cdiv(tokens, TOKENS.value), triton.cdiv(hidden, CHANNELS.value))](x, y, tokens, hidden, **FUSED)
    return y
