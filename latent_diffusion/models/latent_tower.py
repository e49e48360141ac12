"""The body of a network that reads noisy latents and gives one vector a picture.

Residual blocks with the noise level as input, then an average over the picture: the downsampling half of a U-Net.
Reference: Dhariwal & Nichol 2021, arXiv:2105.05233, section 4.1.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from latent_diffusion.errors import ConfigError
from latent_diffusion.nn.embeddings import TimeEmbedding, sinusoids
from latent_diffusion.nn.resnet import Downsample, ResnetBlock

__all__ = ["LatentTower", "LatentTowerConfig"]

EPS = 1e-5


@dataclass(frozen=True)
class LatentTowerConfig:
    """Size of the network."""

    in_channels: int = 4  # of the latents
    channels: tuple[int, ...] = (64, 128, 192)  # of the blocks, one size of latents each, the next half as large
    blocks: int = 1  # residual blocks of each size
    groups: int = 32  # of every GroupNorm

    def __post_init__(self) -> None:
        if not self.channels or any(width % self.groups for width in self.channels):
            raise ConfigError(f"channels {list(self.channels)} must be multiples of groups, {self.groups}")


class LatentTower(nn.Module):
    """One vector for the picture in a noisy latent; the networks that build on it add their heads."""

    def __init__(self, config: LatentTowerConfig) -> None:
        super().__init__()
        self.config = config
        first, *_, last = (config.channels[0], *config.channels)
        width = 4 * first
        self.time_embedding = TimeEmbedding(first, width)
        self.conv_in = nn.Conv2d(config.in_channels, first, 3, padding=1)
        self.blocks = nn.ModuleList()
        before = first
        for size, channels in enumerate(config.channels):
            if size:
                self.blocks.append(Downsample(before, symmetric=True))
            for _ in range(config.blocks):
                self.blocks.append(ResnetBlock(before, channels, groups=config.groups, eps=EPS, time_width=width))
                before = channels
        self.norm_out = nn.GroupNorm(config.groups, last, EPS)

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        """Return a vector (B, channels[-1]) of each picture for x (B, C, h, w) and network times t (B,)."""
        time = F.silu(self.time_embedding(sinusoids(t, self.config.channels[0]).to(x.dtype)))
        x = self.conv_in(x)
        for block in self.blocks:
            x = block(x, time) if isinstance(block, ResnetBlock) else block(x)
        return F.silu(self.norm_out(x)).mean(dim=(2, 3))
