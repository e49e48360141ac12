"""Measure what tiling saves: SD 1's autoencoder with random weights, float32, on the CPU.

    python -m experiments.measure_tiling 512 768

The last layer is scaled so that the images lie in [-1, 1], as a trained model's do. Prints a Markdown table: peak
memory above the weights and time of decode and encode, whole and tiled, and the largest difference between the two.
Linux only: the peak is read from /proc/self/status.
"""

import sys
import time
from functools import partial
from pathlib import Path

import torch

from latent_diffusion.families import sd1
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.runtime.tiling import TiledAutoencoder

STATUS = Path("/proc/self/status")


def memory(field: str) -> float:
    """Return a memory field of /proc/self/status in MiB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def measured(work) -> tuple[torch.Tensor, float, float]:
    """Return what `work` returns, its peak above what was there before in MiB, and its seconds."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start = memory("VmRSS"), time.monotonic()
    result = work()
    return result, memory("VmHWM") - before, time.monotonic() - start


@torch.no_grad()
def main(sizes: list[int]) -> None:
    torch.manual_seed(0)
    whole = AutoencoderKL(sd1.AUTOENCODER).eval()
    largest = whole.decode(torch.randn(1, 4, 32, 32)).abs().max()
    for parameter in whole.decoder.conv_out.parameters():
        parameter /= largest
    tiled = TiledAutoencoder(whole)
    print(
        "| work | px | whole MiB | tiled MiB | whole s | tiled s | largest difference |\n|---|---|---|---|---|---|---|"
    )
    for size in sizes:
        inputs = {
            "decode": torch.randn(1, 4, size // 8, size // 8),
            "encode": torch.rand(1, 3, size, size) * 2 - 1,
        }
        for name, x in inputs.items():
            small, low, slow = measured(partial(_run, tiled, name, x))
            large, high, fast = measured(partial(_run, whole, name, x))
            error = (small - large).abs().max().item()
            print(f"| {name} | {size} | {high:.0f} | {low:.0f} | {fast:.1f} | {slow:.1f} | {error:.1e} |", flush=True)


def _run(model: AutoencoderKL, name: str, x: torch.Tensor) -> torch.Tensor:
    return model.decode(x) if name == "decode" else model.encode(x).mean


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [512, 768])
