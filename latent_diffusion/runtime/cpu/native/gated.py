"""The gated GELU of the feed-forward layers in C (gated.c), with its gradient: one pass over memory in place of six."""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from latent_diffusion.nn.transformer import gated_gelu
from latent_diffusion.runtime.cpu.native.library import Level, address, find, kernel, level
from latent_diffusion.runtime.cpu.self_timing import Trial, Ways, wins

__all__ = ["available", "drawn", "gated", "pays", "takes"]

FORMATS = (torch.float32, torch.bfloat16)


def available() -> bool:
    """Whether `gated` can compute in C here: the kernels were built, and the processor has AVX2 or AVX-512."""
    return level() >= Level.AVX2 and find("gated") is not None


def pays(dtype: torch.dtype) -> bool:
    """Whether `drawn` is there for `dtype`, right, and no slower than torch."""
    return dtype in FORMATS and available() and wins(Trial("gated GELU", dtype), _ours_and_torch)


def takes(x: Tensor) -> bool:
    """Whether C can compute for tensors like `x`."""
    return x.device.type == "cpu" and x.dtype in FORMATS and x.numel() > 0


def drawn(x: Tensor) -> Tensor:
    """Return what `gated` does, without a gradient and for an `x` that C takes."""
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
    _run("gated", y, x, y)
    return y


def gated(x: Tensor) -> Tensor:
    """Return values times the GELU of their gates, (..., D) of x (..., 2 D); in C for CPU float32 and bfloat16."""
    if not (takes(x) and available()):
        return gated_gelu(x)
    y = _Gated.apply(x)
    assert isinstance(y, Tensor), "one result"
    return y


class _Gated(torch.autograd.Function):
    """value * gelu(gate) and its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        return drawn(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        gradient, dx = gradient.contiguous(), torch.empty_like(x)
        _run("gated_back", gradient, x, gradient, dx)
        return dx


def _run(name: str, half: Tensor, *tensors: Tensor) -> None:
    """Call C with `tensors`; `half` is the one with a channel for each value."""
    width = half.shape[-1]
    sizes = (ctypes.c_int64(half.numel() // width), ctypes.c_int64(width))
    kernel(name)(*map(address, tensors), *sizes, half.dtype == torch.bfloat16, torch.get_num_threads())


def _ours_and_torch(dtype: torch.dtype) -> Ways:
    x = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(dtype)
    return lambda: drawn(x), lambda: gated_gelu(x)
