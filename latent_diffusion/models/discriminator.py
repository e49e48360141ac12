"""Patch discriminator that sharpens the autoencoder's pictures.

GroupNorm in place of BatchNorm: its verdict on a picture does not depend on the rest of the batch, nor on the number
of processes.
Reference: Isola et al. 2017, arXiv:1611.07004, section 3.2 (PatchGAN).
"""

from torch import Tensor, nn

__all__ = ["GROUPS", "PatchDiscriminator"]

GROUPS = 8  # of every GroupNorm
MAX_GROWTH = 8  # widths double a layer up to this multiple of the first


class PatchDiscriminator(nn.Module):
    """Score overlapping patches of an image as real (positive) or made (negative)."""

    def __init__(self, in_channels: int = 3, width: int = 64, layers: int = 3) -> None:
        """Build the convolutions.

        Args:
            in_channels: channels of the images.
            width: channels after the first convolution, a multiple of 8.
            layers: convolutions of stride 2; 3 see patches of 70 px a side, 2 of 34 px.
        """
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        channels = width
        for layer in range(1, layers + 1):
            wider = width * min(2**layer, MAX_GROWTH)
            stride = 2 if layer < layers else 1
            blocks += [
                nn.Conv2d(channels, wider, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(GROUPS, wider),
                nn.LeakyReLU(0.2),
            ]
            channels = wider
        self.layers = nn.Sequential(*blocks, nn.Conv2d(channels, 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)  # the paper's section 6.2
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 1, h, w), one a patch, of `images` (B, 3, H, W) in [-1, 1]."""
        return self.layers(images)
