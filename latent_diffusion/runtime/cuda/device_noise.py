"""Noise that is on the GPU when a sampler asks for it, without the host waiting for the GPU.

Noise is drawn on the CPU, so that a seed means one picture everywhere. A plain copy to a GPU waits until all work that
was launched before is done; one from page-locked memory is only one more entry in the queue.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from latent_diffusion.diffusion.noise import NoiseSource

__all__ = ["on_device"]


class NearNoise(NoiseSource):
    """The same streams; draws arrive on a GPU."""

    def __init__(self, source: NoiseSource, device: torch.device) -> None:
        """Draw from `source`, which goes on from where it is."""
        self.source, self.device = source, device

    def __len__(self) -> int:
        """Number of images B."""
        return len(self.source)

    def draw(self, shape: Sequence[int]) -> Tensor:
        """Draw the next noise of every image: float32 (B, C, h, w) on the GPU, of images of `shape` (C, h, w)."""
        return self.source.draw(shape).pin_memory().to(self.device, non_blocking=True)


def on_device(source: NoiseSource, device: torch.device) -> NoiseSource:
    """Return a source with the same numbers whose draws are on `device`, where that is a GPU; else `source` itself."""
    return NearNoise(source, device) if device.type == "cuda" else source
