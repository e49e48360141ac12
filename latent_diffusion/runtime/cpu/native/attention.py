"""Attention in C (attention.c), where the install had a C compiler; else the plain kernels.

Torch's fused attention multiplies at a fifth of what the processor can do in bfloat16, and at a third in float32. Ours
takes a block of queries at a time, keeps scores and sums in float32, and writes the heads side by side, where the next
layer wants them. bfloat16 needs a processor that multiplies it in pairs (AVX512-BF16) or in tiles (AMX:
attention_amx.h).
"""

import ctypes

import torch
from torch import Tensor

from latent_diffusion.nn.attention import automatic, sdpa
from latent_diffusion.runtime.cpu.native.library import Strides, address, find, kernel
from latent_diffusion.runtime.cpu.self_timing import Trial, Ways, wins

__all__ = ["attend", "attends"]

WIDEST = 512  # channels of a head
FORMATS = {torch.float32: "attention_f32", torch.bfloat16: "attention_bf16"}


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "heads", "queries", "keys", "width")),
        *((name, Strides) for name in ("q", "k", "v", "out")),
        ("scale", ctypes.c_float),
        ("threads", ctypes.c_int),
    ]


def attends(dtype: torch.dtype) -> bool:
    """Whether `attend` computes in C here for tensors of `dtype`: it was built, the processor can, and it pays."""
    able = dtype in FORMATS and find(FORMATS[dtype]) is not None
    return able and wins(Trial("attention", dtype), _native_and_plain)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend in C, or with the plain kernels where that cannot be; q (B, N, L, d), k and v (B, N, S, d).

    Returns (B, N, L, d), a view of (B, L, N, d). Needs float32 or bfloat16 on the CPU and no gradients.
    """
    if not (attends(q.dtype) and _fits(q) and _fits(k) and _fits(v) and q.dtype == k.dtype == v.dtype):
        return automatic(q, k, v)
    return _attend(q, k, v)


def _fits(x: Tensor) -> bool:
    if x.requires_grad and torch.is_grad_enabled():
        return False
    even = x.dtype == torch.float32 or (x.shape[-1] % 2 == 0 and x.data_ptr() % 4 == 0)
    rows = x.stride(-1) == 1 and all(s % 2 == 0 for s in x.stride()[:3])
    return x.device.type == "cpu" and x.numel() > 0 and x.shape[-1] <= WIDEST and even and rows


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, heads, queries, width = q.shape
    out = q.new_empty(batch, queries, heads, width).transpose(1, 2)
    strides = [Strides.of(x) for x in (q, k, v, out)]
    shape = _Shape(batch, heads, queries, k.shape[2], width, *strides, width**-0.5, torch.get_num_threads())
    if kernel(FORMATS[q.dtype])(*(address(x) for x in (q, k, v, out)), ctypes.byref(shape)):
        raise MemoryError("attention: no memory for a thread's scratch space")
    return out


def _native_and_plain(dtype: torch.dtype) -> Ways:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 8 * 40, generator=generator, dtype=torch.float32).to(dtype) for n in (500, 300, 300))
    q, k, v = (x.unflatten(-1, (8, 40)).transpose(1, 2) for x in (q, k, v))
    return lambda: _attend(q, k, v), lambda: sdpa(q, k, v)
