"""An autoencoder that works in bands of rows and gives the images and latents of the whole.

Approximate tiling cuts the latent into tiles and blends what each decodes to; every tile then has GroupNorm statistics
of its own, which shows as seams and tints. Here only memory is cut: each layer reads the few rows it needs beyond its
band, statistics are those of the whole map (one more pass over it), attention takes its queries in chunks. What comes
out differs from the whole by rounding alone.

A residual block keeps two maps, its input (which becomes its output) and its first convolution; the input of the widest
blocks, fresh from upsampling, is computed again where it is read in place of being kept.
"""

import copy
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from latent_diffusion.models.autoencoder import (
    LOGVAR_RANGE,
    AutoencoderKL,
    DecoderLevel,
    EncoderLevel,
    Middle,
    Posterior,
)
from latent_diffusion.nn.attention import ImageAttention, Kernel
from latent_diffusion.nn.resnet import Downsample, ResnetBlock, Upsample
from latent_diffusion.runtime.rows import Downsampled, Kept, Map, NormedConv, PlainConv, Sum, Upsampled, keep

__all__ = ["TiledAutoencoder", "in_chunks"]

M = TypeVar("M", bound=nn.Module)

MAX_SCORES = 2**24  # entries B * N * L * S of the attention's scores at once: 64 MiB in float32


class TiledAutoencoder(AutoencoderKL):
    """The same modules, weights and methods as the autoencoder it is made of; encodes and decodes in bands."""

    def __init__(self, model: AutoencoderKL) -> None:
        """Share the modules of `model`."""
        nn.Module.__init__(self)
        self.config = model.config
        self.encoder, self.decoder = model.encoder, model.decoder
        self.quant_conv, self.post_quant_conv = model.quant_conv, model.post_quant_conv
        self.train(model.training)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Posterior:
        """Return the posterior over z of `images` (B, 3, H, W), one image after another; no gradients."""
        moments = torch.cat([self.quant_conv(self._encode(image)) for image in images.split(1)])
        mean, logvar = moments.chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(*LOGVAR_RANGE))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return images (B, 3, H, W) of `z` (B, C, h, w), one image after another; no gradients."""
        return torch.cat([self._decode(self.post_quant_conv(part)) for part in z.split(1)])

    def _encode(self, images: Tensor) -> Tensor:
        encoder = self.encoder
        x: Map = PlainConv(Kept(images), encoder.conv_in)
        for level in _each(encoder.down_blocks, EncoderLevel):
            for block in _each(level.resnets, ResnetBlock):
                x = residual(block, x)
            for down in _each(level.downsamplers, Downsample):
                x = keep(Downsampled(x, down.conv))
        hidden = Kept(self._middle(encoder.mid_block, keep(x).values))
        return keep(NormedConv(hidden, encoder.conv_norm_out, encoder.conv_out)).values

    def _decode(self, z: Tensor) -> Tensor:
        decoder = self.decoder
        x: Map = Kept(self._middle(decoder.mid_block, decoder.conv_in(z)))
        # entries of the largest map that has to be kept: a block's output at the image's size
        largest = self.config.block_out_channels[0] * z.shape[2] * z.shape[3] * self.factor**2
        for level in _each(decoder.up_blocks, DecoderLevel):
            for block in _each(level.resnets, ResnetBlock):
                x = residual(block, x)
            for up in _each(level.upsamplers, Upsample):
                x = Upsampled(x, up.conv)
                x = keep(x) if torch.Size(x.shape).numel() <= largest else x
        return keep(NormedConv(x, decoder.conv_norm_out, decoder.conv_out)).values

    def _middle(self, middle: Middle, x: Tensor) -> Tensor:
        """Run the middle as it is, small as its maps are, but for the attention's scores."""
        x = middle.resnets[0](x)
        for attention in _each(middle.attentions, ImageAttention):
            in_parts = copy.copy(attention)  # shares the weights; the model's own kernel stays as it is
            in_parts.kernel = in_chunks(attention.kernel)
            x = in_parts(x)
        return middle.resnets[1](x)


def _each(modules: nn.ModuleList, kind: type[M]) -> Iterator[M]:
    """Yield the entries of a module list as what they are, which torch does not keep."""
    for module in modules:
        assert isinstance(module, kind), f"a {type(module).__name__} among {kind.__name__}s"
        yield module


def residual(block: ResnetBlock, x: Map) -> Kept:
    """Return the output of a block without the noise level as input; overwrites `x` where it is kept and fits."""
    hidden = keep(NormedConv(x, block.norm1, block.conv1))
    total = Sum(NormedConv(hidden, block.norm2, block.conv2), x, block.conv_shortcut)
    # a row of the sum reads no other row of x, so the sum can take its place
    return keep(total, into=x.values if isinstance(x, Kept) and block.conv_shortcut is None else None)


def in_chunks(kernel: Kernel, limit: int = MAX_SCORES) -> Kernel:
    """Return `kernel` called for as many queries at once as keep its scores within `limit` entries."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        at_once = max(1, limit // (q.shape[0] * q.shape[1] * k.shape[-2]))
        return torch.cat([kernel(part, k, v) for part in q.split(at_once, dim=-2)], dim=-2)

    return attend
