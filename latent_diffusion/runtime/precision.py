"""The number formats of training and their memory layout: of weights, of the forward pass, of states kept for it."""

import os
import platform
import time
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from latent_diffusion.errors import ConfigError

__all__ = ["autocast", "bfloat16_cost", "bfloat16_is_fast", "layout", "place", "state_dtype", "weight_dtype"]


def weight_dtype(precision: str) -> torch.dtype:
    """Return the dtype of weights, gradients and optimizer state: float32, or float64 for tests.

    bfloat16 trains float32 weights under autocast: bfloat16 weights lose updates smaller than 1/256 of themselves.
    """
    return torch.float64 if precision == "float64" else torch.float32


_WITHOUT_BFLOAT16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
"""Values of ONEDNN_MAX_CPU_ISA under which oneDNN emulates bfloat16."""


def bfloat16_is_fast(device: torch.device) -> bool:
    """Return whether `device` has bfloat16 arithmetic; nothing is timed, so equal machines answer equally.

    Without it a CPU emulates bfloat16: the bundled model's U-Net, fine-tuned at batch 4 with one thread on an AVX2
    processor, trains on 0.34 images/s, in float32 on 4.2.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _WITHOUT_BFLOAT16:
        return False
    if platform.machine().lower() in ("arm64", "aarch64"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def bfloat16_cost(device: torch.device) -> float:
    """Return how many times as long as in float32 a convolution with its gradient takes in bfloat16; some 0.3 s."""

    def seconds(dtype: torch.dtype) -> float:
        conv = nn.Conv2d(64, 64, 3, padding=1, device="meta")  # its weights would take from the process's random state
        conv.load_state_dict({n: torch.ones(p.shape) for n, p in conv.state_dict().items()}, assign=True)
        place(conv, device, dtype, "bfloat16" if dtype == torch.bfloat16 else "float32")
        x = torch.ones(1, 64, 16, 16, device=device, dtype=dtype)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            with torch.enable_grad():
                conv(x).sum().backward()
            times.append(time.perf_counter() - start)
        return min(times)

    return seconds(torch.bfloat16) / seconds(torch.float32)


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Return the context of the forward pass for `precision` ("float32", "bfloat16", "float64").

    Raises:
        ConfigError: the device does not compute in that precision.
    """
    if precision != "bfloat16":
        return nullcontext()
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("precision: this GPU has no bfloat16; use precision: float32")
    return torch.autocast(device.type, dtype=torch.bfloat16)


def state_dtype(precision: str) -> torch.dtype:
    """Return the dtype in which text states are kept: bfloat16 autocast rounds them to it before all else."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def layout(device: torch.device, precision: str) -> torch.memory_format:
    """Return the memory layout of pictures and convolutions that trains fastest in `precision`.

    That is channels_last, but for bfloat16 on CPUs: GroupNorm in bfloat16 is slow there in channels_last, and took a
    sixth of an update of a U-Net.
    """
    slow_norms = device.type == "cpu" and precision == "bfloat16"
    return torch.contiguous_format if slow_norms else torch.channels_last


def place(network: nn.Module, device: torch.device, dtype: torch.dtype, precision: str = "float32") -> None:
    """Move a convolutional network to `device` and `dtype`, in the layout that trains fastest; in place."""
    network.to(device=device, dtype=dtype)
    network.to(memory_format=layout(device, precision))
