"""What the machine reaches in the same run: the ceiling that every case is held against.

A large matrix product and a 3x3 convolution of the U-Net's kind on CPUs, where the libraries behind the two differ;
a matrix product on GPUs, with a copy for the memory.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

__all__ = ["measure_peaks", "peak_of"]

CALLS = 7  # the median counts
SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices
IMAGE, CHANNELS = (2, 64, 64), 320  # of the convolution: the first level of SD 1.5's U-Net at 512 px, guided
COPY = 2**30  # bytes


def measure_peaks(device: str, dtype: torch.dtype) -> dict[str, float]:
    """Return GFLOP/s of a matrix product ("gemm") and on CPUs a convolution ("conv"); on GPUs GB/s of a copy."""
    side = SIDE[device]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    found = {"gemm": 2 * side**3 / _seconds(lambda: F.linear(a, b), device) / 1e9}
    if device == "cuda":
        source = torch.empty(COPY, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        found["copy"] = 2 * COPY / _seconds(lambda: target.copy_(source), device) / 1e9  # read and written
        del a, b, source, target
        torch.cuda.empty_cache()  # it is the workers' memory
        return found
    batch, height, width = IMAGE
    x = torch.randn(batch, CHANNELS, height, width).to(dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3).to(dtype).to(memory_format=torch.channels_last)
    flops = 2 * 9 * CHANNELS**2 * batch * height * width
    return {**found, "conv": flops / _seconds(lambda: F.conv2d(x, weight, padding=1), device) / 1e9}


def peak_of(*measured: dict[str, float]) -> float:
    """Return the ceiling in GFLOP/s: the fastest kind of work, averaged over the measurements."""
    kinds = [kind for kind in measured[0] if kind != "copy"]
    return max(statistics.fmean(part[kind] for part in measured) for kind in kinds)


@torch.no_grad()
def _seconds(work: Callable[[], object], device: str) -> float:
    times = []
    for _ in range(CALLS + 1):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
