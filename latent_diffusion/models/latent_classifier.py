"""A classifier of noisy latents: residual blocks with the noise level as input, an average over the picture, one layer.

It names several fields of a picture at once ("style", "group"), each with classes of its own.
Reference: Dhariwal & Nichol 2021, arXiv:2105.05233, section 4.1 (the downsampling half of a U-Net, with the level).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from latent_diffusion.errors import ConfigError
from latent_diffusion.nn.embeddings import TimeEmbedding, sinusoids
from latent_diffusion.nn.resnet import Downsample, ResnetBlock

__all__ = ["LatentClassifier", "LatentClassifierConfig"]

EPS = 1e-5


@dataclass(frozen=True)
class LatentClassifierConfig:
    """Size of the network and its classes."""

    fields: Mapping[str, tuple[str, ...]]  # name of a field: its classes, in the order of the outputs
    in_channels: int = 4  # of the latents
    channels: tuple[int, ...] = (64, 128, 192)  # of the blocks, one size of latents each, the next half as large
    blocks: int = 1  # residual blocks of each size
    groups: int = 32  # of every GroupNorm

    def __post_init__(self) -> None:
        if not self.channels or any(width % self.groups for width in self.channels):
            raise ConfigError(f"channels {list(self.channels)} must be multiples of groups, {self.groups}")
        labels = [label for classes in self.fields.values() for label in classes]
        if not self.fields or any(len(classes) < 2 for classes in self.fields.values()):
            raise ConfigError("a classifier needs a field of two classes or more")
        if len({*labels}) < len(labels):
            twice = sorted({label for label in labels if labels.count(label) > 1})
            raise ConfigError(f"classes of two fields have one name: {', '.join(twice)}; leave one of the fields out")

    def place(self, label: str) -> tuple[str, int]:
        """Return the field that has a class, and the number of its output there.

        Raises:
            ConfigError: no field has it.
        """
        for field, classes in self.fields.items():
            if label in classes:
                return field, classes.index(label)
        known = "; ".join(f"{field}: {', '.join(classes)}" for field, classes in self.fields.items())
        raise ConfigError(f"the classifier has no class {label!r:.50}; it has {known}")


class LatentClassifier(nn.Module):
    """Classes of the picture in a noisy latent."""

    def __init__(self, config: LatentClassifierConfig) -> None:
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
        self.heads = nn.ModuleList(nn.Linear(last, len(names)) for names in config.fields.values())  # a field each

    def forward(self, x: Tensor, t: Tensor) -> dict[str, Tensor]:
        """Return log-probabilities (B, classes) of each field for x (B, C, h, w) and network times t (B,)."""
        time = F.silu(self.time_embedding(sinusoids(t, self.config.channels[0]).to(x.dtype)))
        x = self.conv_in(x)
        for block in self.blocks:
            x = block(x, time) if isinstance(block, ResnetBlock) else block(x)
        seen = F.silu(self.norm_out(x)).mean(dim=(2, 3))
        heads = zip(self.config.fields, self.heads, strict=True)
        return {field: head(seen).log_softmax(dim=1) for field, head in heads}
