"""GroupNorm and SiLU in one, in C (group_norm.c), in the residual blocks of a network.

Memory is read twice and written once; torch's two operations read three times and write twice. Statistics are exact to
1e-7 whatever the mean, where torch's of channels_last maps lose digits.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_diffusion.runtime.cpu.native.library import address, find, kernel
from latent_diffusion.runtime.cpu.self_timing import Trial, Ways, wins

__all__ = ["norm_silu", "pays", "takes"]

LANES = 16  # the channels are a multiple
FORMATS = (torch.float32, torch.bfloat16)


class _Norm(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "pixels", "channels", "groups")),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_int) for name in ("silu", "bfloat16", "threads")),
    ]


def pays(dtype: torch.dtype) -> bool:
    """Whether `norm_silu` is there for maps of `dtype`, right, and no slower than torch."""
    return dtype in FORMATS and find("group_norm") is not None and wins(Trial("norm", dtype), _ours_and_torch)


def norm_silu(x: Tensor, norm: nn.GroupNorm, shift: Tensor | None = None) -> Tensor:
    """Return SiLU of `norm` of `x` (B, C, H, W) + `shift` (B, C), channels_last; C is a multiple of 16."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    out = torch.empty_like(x)
    weight, bias = (p.detach().float().contiguous() for p in (norm.weight, norm.bias))
    shift = None if shift is None else shift.float().contiguous()
    settings = 1, x.dtype == torch.bfloat16, torch.get_num_threads()
    shape = _Norm(batch, height * width, channels, norm.num_groups, norm.eps, *settings)
    pointers = [None if t is None else address(t) for t in (x, shift, weight, bias, out)]
    if kernel("group_norm")(*pointers, ctypes.byref(shape)):
        raise MemoryError("norm: no memory for the sums")
    return out


def takes(x: Tensor) -> bool:
    """Whether `norm_silu` can compute for maps like `x`."""
    return x.device.type == "cpu" and x.dtype in FORMATS and x.numel() > 0 and x.shape[1] % LANES == 0


def _ours_and_torch(dtype: torch.dtype) -> Ways:
    generator = torch.Generator().manual_seed(0)
    x, norm = (
        torch.randn(1, 64, 40, 40, generator=generator, dtype=torch.float32).to(dtype),
        nn.GroupNorm(8, 64, dtype=dtype),
    )
    x = x.contiguous(memory_format=torch.channels_last)
    return lambda: norm_silu(x, norm), lambda: F.silu(norm(x))
