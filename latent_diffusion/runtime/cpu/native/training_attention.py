"""Attention with its gradient in C (training_attention.c), for training on CPUs where the install had a compiler.

Backward of torch's attention takes three times as long as forward, and both lose most of it on narrow heads: their
matrix products are made for wide ones. Ours keeps no scores, computes in float32 whatever the tensors are, and gives
the same bits with any number of threads.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from latent_diffusion.nn.attention import automatic, few_scores
from latent_diffusion.runtime.cpu.native.library import Level, Strides, address, find, kernel, level

__all__ = ["attend", "available"]

WIDEST = 512  # channels of a head
NARROW = 32
"""Channels of a head up to which it is the faster way in bfloat16: plain products gain from bfloat16, these do not."""


class _Heads(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("by", Strides)]


class _Sizes(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "heads", "queries", "keys", "width")),
        ("bfloat16", ctypes.c_int),
        ("threads", ctypes.c_int),
    ]


def available() -> bool:
    """Whether `attend` can compute in C here: the kernels were built, and the processor has AVX2 or AVX-512."""
    return level() >= Level.AVX2 and find("training_attention") is not None


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend; q (B, N, L, d), k and v (B, N, S, d) -> (B, N, L, d), a view of (B, L, N, d).

    In C on the CPU in float32 and bfloat16, else with the plain kernels; with those too where wide heads in bfloat16
    have few enough scores to be multiplied with plain calls.
    """
    fits = q.device.type == "cpu" and q.dtype == k.dtype == v.dtype and q.shape[-1] <= WIDEST
    known = q.dtype == torch.float32 or (q.dtype == torch.bfloat16 and not (q.shape[-1] > NARROW and few_scores(q, k)))
    if not (fits and known and q.numel() and k.numel() and available()):
        return automatic(q, k, v)
    out = _Attention.apply(q, k, v)
    assert isinstance(out, Tensor), "one result"
    return out


class _Attention(torch.autograd.Function):
    """softmax(q k^T / sqrt(d)) v and its gradient."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (_with_rows(x) for x in (q, k, v))
        out, log_sums = _empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
        ctx.sizes = _Sizes(*q.shape[:3], k.shape[2], q.shape[3], q.dtype == torch.bfloat16, torch.get_num_threads())
        _run("training_attention", _heads(q, k, v, out), address(log_sums), ctypes.byref(ctx.sizes))
        ctx.save_for_backward(q, k, v, out, log_sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, out, log_sums = ctx.saved_tensors
        gradient = _with_rows(gradient)
        dq, dk, dv = (_empty_like(x) for x in (q, k, v))
        given, made = _heads(q, k, v, out, gradient), _heads(dq, dk, dv)
        _run("training_attention_back", given, address(log_sums), made, ctypes.byref(ctx.sizes))
        return dq, dk, dv


def _run(name: str, *arguments: Any) -> None:
    if kernel(name)(*arguments):
        raise MemoryError("attention: no memory for a thread's scratch space")


def _with_rows(x: Tensor) -> Tensor:
    """Return `x` with the channels of a head next to each other in memory."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _empty_like(x: Tensor) -> Tensor:
    """Return (B, N, L, d) with the heads of a token side by side, as the next layer wants them."""
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)


def _heads(*tensors: Tensor) -> ctypes.Array:
    """Return where tensors (B, N, L, d) lie, for C; they must outlive the call."""
    return (_Heads * len(tensors))(*(_Heads(x.data_ptr(), Strides.of(x)) for x in tensors))
