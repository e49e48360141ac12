"""Variational autoencoder between images and latents, with the latent scale.

    q(z | image) = N(mean, exp(logvar)),   latents = (z - shift_factor) * scaling_factor

Tensor names are those of diffusers' `AutoencoderKL`.
Reference: Kingma & Welling 2014, arXiv:1312.6114; Rombach et al. 2022, arXiv:2112.10752, section 3.1.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_diffusion.errors import ConfigError
from latent_diffusion.nn.attention import ImageAttention
from latent_diffusion.nn.resnet import Downsample, ResnetBlock, Upsample

__all__ = ["AutoencoderConfig", "AutoencoderKL", "Posterior"]

NORM_EPS = 1e-6  # of every GroupNorm of the published autoencoders
LOGVAR_RANGE = (-30.0, 20.0)  # keeps exp(logvar) finite in float32, as in the published code


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of an autoencoder; field names are those of diffusers' config.json."""

    block_out_channels: tuple[int, ...]  # channels of each level, the image's side first; each further level halves it
    layers_per_block: int  # residual blocks a level on the way down; one more on the way up
    latent_channels: int  # channels C of a latent
    in_channels: int = 3  # RGB
    out_channels: int = 3  # RGB
    norm_num_groups: int = 32  # groups of every GroupNorm; divides every entry of block_out_channels
    mid_block_add_attention: bool = True  # attention at the lowest size
    use_quant_conv: bool = True  # 1x1 convolution after the encoder
    use_post_quant_conv: bool = True  # 1x1 convolution before the decoder
    scaling_factor: float = 0.18215  # latents = (z - shift_factor) * scaling_factor
    shift_factor: float | None = None  # None = 0
    sample_size: int = 512  # px, the size it was trained at
    force_upcast: bool = True  # a hint for other tools: decode in float32 where float16 is in use

    def __post_init__(self) -> None:
        """Check the sizes; lists become tuples.

        Raises:
            ConfigError: channels that the groups do not divide, or an empty list of levels.
        """
        object.__setattr__(self, "block_out_channels", tuple(self.block_out_channels))
        if not self.block_out_channels:
            raise ConfigError("autoencoder: block_out_channels is empty; give the channels of each level")
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ConfigError(
                    f"autoencoder: block_out_channels has {channels}, "
                    f"not a multiple of norm_num_groups {self.norm_num_groups}"
                )


@dataclass(frozen=True)
class Posterior:
    """Diagonal Gaussian over z; `mean` and `logvar` (B, C, h, w), not scaled."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return mean + std * noise (B, C, h, w); `noise` is standard normal of the same shape."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """Return the divergence from N(0, 1) in nats, summed over an image's latent: (B,)."""
        terms = self.mean.square() + self.logvar.exp() - 1.0 - self.logvar
        return 0.5 * terms.flatten(1).sum(1)


class AutoencoderKL(nn.Module):
    """Encoder and decoder between images in [-1, 1] and latents of about unit variance."""

    def __init__(self, config: AutoencoderConfig) -> None:
        """Build the networks with torch's default initialisation."""
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if config.use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if config.use_post_quant_conv else nn.Identity()

    @property
    def factor(self) -> int:
        """Pixels a side of one latent cell."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def encode(self, images: Tensor) -> Posterior:
        """Return the posterior over z of `images` (B, 3, H, W) float in [-1, 1]; H and W multiples of `factor`."""
        mean, logvar = self.quant_conv(self.encoder(images)).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(*LOGVAR_RANGE))

    def decode(self, z: Tensor) -> Tensor:
        """Return images (B, 3, H, W), about [-1, 1] and not clamped, of `z` (B, C, h, w)."""
        return self.decoder(self.post_quant_conv(z))

    def to_latents(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return scaled latents (B, C, h, w) of `images` (B, 3, H, W) in [-1, 1]: the mean, or drawn with `noise`."""
        posterior = self.encode(images)
        return self.scale(posterior.mean if noise is None else posterior.sample(noise))

    def to_images(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W), about [-1, 1] and not clamped, of scaled `latents` (B, C, h, w)."""
        return self.decode(latents / self.config.scaling_factor + (self.config.shift_factor or 0.0))

    def scale(self, z: Tensor) -> Tensor:
        """Return the scaled latents of `z`: (z - shift_factor) * scaling_factor."""
        return (z - (self.config.shift_factor or 0.0)) * self.config.scaling_factor

    def enable_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Keep only each block's input for backward and compute the block again: less memory, about a third slower."""
        for module in self.modules():
            if isinstance(module, ResnetBlock):
                module.checkpointing = enabled


class Encoder(nn.Module):
    """Images (B, 3, H, W) to mean and logvar before the 1x1 convolution (B, 2 C, h, w)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        """Build the levels from the image's side to the latent's."""
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            inputs = [widths[max(level - 1, 0)]] + [width] * (config.layers_per_block - 1)
            last = level == len(widths) - 1
            self.down_blocks.append(EncoderLevel(inputs, width, groups, downsample=not last))
        self.mid_block = Middle(widths[-1], groups, config.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Encode `x` (B, 3, H, W)."""
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """z after the 1x1 convolution (B, C, h, w) to images (B, 3, H, W)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        """Build the levels from the latent's side to the image's."""
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], groups, config.mid_block_add_attention)
        self.up_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            inputs = [widths[max(level - 1, 0)]] + [width] * config.layers_per_block
            last = level == len(widths) - 1
            self.up_blocks.append(DecoderLevel(inputs, width, groups, upsample=not last))
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the last convolution, where the adversarial weight compares gradients."""
        weight = self.conv_out.weight
        assert isinstance(weight, nn.Parameter), "a convolution's weight is one"
        return weight

    def forward(self, z: Tensor) -> Tensor:
        """Decode `z` (B, C, h, w)."""
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Middle(nn.Module):
    """Residual block, attention where asked for, residual block, at the latent's size."""

    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        """Build the blocks."""
        super().__init__()
        self.attentions = nn.ModuleList([ImageAttention(channels, groups, NORM_EPS)] if attention else [])
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups=groups, eps=NORM_EPS) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class EncoderLevel(nn.Module):
    """Residual blocks, then half the size."""

    def __init__(self, inputs: list[int], width: int, groups: int, *, downsample: bool) -> None:
        """Build one residual block for each of the input widths `inputs`."""
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(i, width, groups=groups, eps=NORM_EPS) for i in inputs)
        self.downsamplers = nn.ModuleList([Downsample(width, symmetric=False)] if downsample else [])

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C', H, W) to (B, C, H / 2, W / 2), or keep the size on the last level."""
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class DecoderLevel(nn.Module):
    """Residual blocks, then twice the size."""

    def __init__(self, inputs: list[int], width: int, groups: int, *, upsample: bool) -> None:
        """Build one residual block for each of the input widths `inputs`."""
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(i, width, groups=groups, eps=NORM_EPS) for i in inputs)
        self.upsamplers = nn.ModuleList([Upsample(width)] if upsample else [])

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C', h, w) to (B, C, 2 h, 2 w), or keep the size on the last level."""
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x
