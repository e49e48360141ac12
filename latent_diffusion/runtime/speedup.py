"""The same network, faster on this machine: what is done to it, in place, once it is where it works.

On CPUs the weights are packed (`packing`), and freed memory is kept for reuse (`allocator`); attention takes its kernel
from a field that `attention.set_kernel` sets. On GPUs the layers are rebuilt (`cuda_speedup`), and forward passes are
recorded once and replayed (`graphs`). The numbers stay those of the plain network, within rounding.
"""

import torch
from torch import nn

from latent_diffusion.runtime.cpu.allocator import keep_large_blocks
from latent_diffusion.runtime.cpu.packing import pack
from latent_diffusion.runtime.cuda.cuda_graphs import CudaRecorder
from latent_diffusion.runtime.cuda.cuda_speedup import fast_cuda
from latent_diffusion.runtime.cuda.graphs import Graphs

__all__ = ["recordings", "speed_up"]


def speed_up(module: nn.Module, device: torch.device) -> None:
    """Make `module`, which is on `device`, compute as fast as this machine lets it; in place."""
    if device.type == "cpu":
        pack(module)
        keep_large_blocks()
    elif device.type == "cuda":
        fast_cuda(module, next(module.parameters()).dtype)


def recordings(device: torch.device) -> Graphs | None:
    """Return where the forward passes of one pipeline are recorded; None for devices that cannot replay."""
    return Graphs(CudaRecorder(device)) if device.type == "cuda" else None
