"""Tiny autoencoder: a distilled stand-in for the large one, for previews and small machines (TAESD).

Plain convolutions with ReLUs, no attention, no norms: a picture in a twentieth of the large decoder's work. It
reads and gives scaled latents, those the U-Net works on. Tensor names are those of diffusers' `AutoencoderTiny`.
Reference: Bohan 2023, "Tiny AutoEncoder for Stable Diffusion", https://github.com/madebyollin/taesd.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_diffusion.errors import ConfigError

__all__ = ["TinyAutoencoder", "TinyAutoencoderConfig"]

LARGEST_LATENT = 3.0  # a latent beyond it is squeezed towards it before decoding


@dataclass(frozen=True)
class TinyAutoencoderConfig:
    """Sizes; field names are those of diffusers' config.json."""

    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)  # channels of each stage, the image's side first
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)  # channels of each stage, the latent's side first
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)  # residual blocks of each stage
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_channels: int = 4  # channels C of a latent
    in_channels: int = 3  # RGB
    out_channels: int = 3  # RGB
    scaling_factor: float = 1.0  # its own latents times this are those of the U-Net

    def __post_init__(self) -> None:
        """Lists become tuples.

        Raises:
            ConfigError: lists of different lengths, empty ones, or stages of different widths.
        """
        for name in ("encoder_block_out_channels", "decoder_block_out_channels"):
            blocks = name.replace("block_out_channels", "blocks")
            channels, counts = tuple(getattr(self, name)), tuple(getattr(self, f"num_{blocks}"))
            if not channels or len(channels) != len(counts):
                raise ConfigError(f"tiny autoencoder: {len(channels)} entries of {name}, {len(counts)} of num_{blocks}")
            if len(set(channels)) > 1:  # nothing between the stages changes the width
                raise ConfigError(f"tiny autoencoder: {name} is {list(channels)}; all stages must have one width")
            object.__setattr__(self, name, channels)
            object.__setattr__(self, f"num_{blocks}", counts)


class TinyAutoencoder(nn.Module):
    """Encoder and decoder between images in [-1, 1] and scaled latents."""

    def __init__(self, config: TinyAutoencoderConfig) -> None:
        """Build both with torch's default initialisation."""
        super().__init__()
        self.config = config
        self.encoder = Stack(_encoder_layers(config))
        self.decoder = Stack(_decoder_layers(config))

    @property
    def factor(self) -> int:
        """Pixels a side of one latent cell."""
        return 2 ** (len(self.config.decoder_block_out_channels) - 1)

    def to_latents(self, images: Tensor) -> Tensor:
        """Return scaled latents (B, C, h, w) of `images` (B, 3, H, W) in [-1, 1]."""
        return self.encoder(images / 2 + 0.5) * self.config.scaling_factor

    def to_images(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W), about [-1, 1] and not clamped, of scaled `latents` (B, C, h, w)."""
        squeezed = torch.tanh(latents / self.config.scaling_factor / LARGEST_LATENT) * LARGEST_LATENT
        return self.decoder(squeezed) * 2 - 1


class Stack(nn.Module):
    """Layers one after another, under the published name `layers`."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Apply every layer to `x` (B, C, H, W)."""
        return self.layers(x)


class Block(nn.Module):
    """Three convolutions with ReLUs, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(channels, channels), nn.ReLU(), _conv(channels, channels), nn.ReLU(), _conv(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return F.relu(self.conv(x) + x)


def _encoder_layers(config: TinyAutoencoderConfig) -> list[nn.Module]:
    width, (first, *rest) = config.encoder_block_out_channels[0], config.num_encoder_blocks
    layers: list[nn.Module] = [_conv(config.in_channels, width), *_blocks(width, first)]
    for count in rest:
        layers += [nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False), *_blocks(width, count)]
    return [*layers, _conv(width, config.latent_channels)]


def _decoder_layers(config: TinyAutoencoderConfig) -> list[nn.Module]:
    width, (*rest, last) = config.decoder_block_out_channels[0], config.num_decoder_blocks
    layers: list[nn.Module] = [_conv(config.latent_channels, width), nn.ReLU()]
    for count in rest:
        layers += [*_blocks(width, count), nn.Upsample(scale_factor=2), _conv(width, width, bias=False)]
    return [*layers, *_blocks(width, last), _conv(width, config.out_channels)]


def _blocks(channels: int, count: int) -> list[nn.Module]:
    return [Block(channels) for _ in range(count)]


def _conv(inputs: int, outputs: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
