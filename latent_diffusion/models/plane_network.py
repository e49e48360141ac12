"""A small network of points: linear layers that read a few numbers, their waves, and a time.

Without sines and cosines of the numbers it learns nothing finer than its data's spread in thousands of updates.
Reference: Tancik et al. 2020, arXiv:2006.10739 (Fourier features).
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_diffusion.nn.embeddings import sinusoids

__all__ = ["PlaneNetwork"]

TIME_WIDTH = 32
FREQUENCIES = (2.0, 4.0, 8.0)


class PlaneNetwork(nn.Module):
    """Linear layers with SiLU between; the first reads the numbers, their sines and cosines, and those of the time."""

    def __init__(self, inputs: int, outputs: int, width: int, layers: int, end: float) -> None:
        """Build the network.

        Args:
            inputs: numbers of a sample that are read.
            outputs: numbers that are made of them.
            width: of the layers between.
            layers: how many of those.
            end: the last time.
        """
        super().__init__()
        self.inputs, self.end = inputs, end
        sizes = [inputs * (1 + 2 * len(FREQUENCIES)) + TIME_WIDTH, *[width] * layers]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.last = nn.Linear(sizes[-1], outputs)

    def forward(self, *read: Tensor) -> Tensor:
        """Return (B, outputs) for what is read: numbers (B, n), in as many parts as there are, and times (B,)."""
        *values, time = read
        x = torch.cat(values, 1)
        waves = torch.cat([frequency * x for frequency in FREQUENCIES], 1)
        x = torch.cat([x, waves.sin(), waves.cos(), sinusoids(1000 / self.end * time, TIME_WIDTH).to(x)], 1)
        for layer in self.layers:
            x = F.silu(layer(x))
        return self.last(x).to(values[0].dtype)
