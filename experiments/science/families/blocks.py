"""The ways down and up that VAE, hierarchical VAE and GAN share, of the residual blocks of the product's U-Net.

Pictures are folded to (12, 16, 16) first: each 2 x 2 px become one place, which loses nothing and costs a quarter.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from latent_diffusion.nn.resnet import Downsample, ResnetBlock, Upsample

__all__ = ["Decoder", "Encoder", "block", "fold", "unfold"]

GROUPS = 8
SMALLEST = 4  # px a side of the last level


def fold(x: Tensor) -> Tensor:
    """Return pictures (B, 3, 32, 32) as (B, 12, 16, 16)."""
    return F.pixel_unshuffle(x, 2)


def unfold(x: Tensor) -> Tensor:
    """Return (B, 12 k, 16, 16) as pictures (B, 3 k, 32, 32)."""
    return F.pixel_shuffle(x, 2)


def block(inputs: int, outputs: int) -> ResnetBlock:
    """Return a residual block without a noise level."""
    return ResnetBlock(inputs, outputs, groups=GROUPS, eps=1e-5)


class Encoder(nn.Module):
    """Pictures (B, 3, 32, 32) -> a vector (B, outputs, 1, 1), and the features of each level on the way."""

    def __init__(self, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.start = nn.Conv2d(12, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(block(width, width) for width in widths)
        pairs = pairwise(widths)
        self.down = nn.ModuleList(
            nn.Sequential(Downsample(width, symmetric=True), nn.Conv2d(width, wider, 1)) for width, wider in pairs
        )
        self.end = nn.Sequential(nn.GroupNorm(GROUPS, widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], outputs, SMALLEST))

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the features at 16, 8 and 4 px."""
        x = self.start(fold(x))
        found = list[Tensor]()
        for level, layers in enumerate(self.blocks):
            x = layers(x if level == 0 else self.down[level - 1](x))
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures to the vector."""
        return self.end(self.features(x)[-1])


class Decoder(nn.Module):
    """A vector z (B, Z, 1, 1) -> (B, outputs, 32, 32), by levels of 4, 8 and 16 px."""

    def __init__(self, widths: Sequence[int], inputs: int, outputs: int) -> None:
        super().__init__()
        rising = widths[::-1]
        self.start = nn.ConvTranspose2d(inputs, rising[0], SMALLEST)
        self.blocks = nn.ModuleList(block(width, width) for width in rising)
        pairs = pairwise(rising)
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, narrower, 1), Upsample(narrower)) for width, narrower in pairs
        )
        self.end = nn.Sequential(
            nn.GroupNorm(GROUPS, rising[-1]), nn.SiLU(), nn.Conv2d(rising[-1], 4 * outputs, 3, padding=1)
        )

    def level(self, number: int, x: Tensor) -> Tensor:
        """Return the features of a level, 0 = 4 px, from those of the one before, or from z."""
        return self.blocks[number](self.start(x) if number == 0 else self.up[number - 1](x))

    def forward(self, z: Tensor) -> Tensor:
        """Map z to the picture."""
        for number in range(len(self.blocks)):
            z = self.level(number, z)
        return unfold(self.end(z))
