"""Residual convolution block and the two resamplers of the autoencoder and the U-Net.

Reference: Ho et al. 2020, arXiv:2006.11239, appendix B; Rombach et al. 2022, arXiv:2112.10752, appendix E.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["Downsample", "ResnetBlock", "Upsample"]


class ResnetBlock(nn.Module):
    """norm, SiLU, conv; add the noise level; norm, SiLU, conv; add the input."""

    def __init__(
        self, in_channels: int, out_channels: int, *, groups: int, eps: float, time_width: int | None = None
    ) -> None:
        """Build the block.

        Args:
            in_channels: channels of the input.
            out_channels: channels of the output; a 1x1 convolution carries the residual where they differ.
            groups: groups of each GroupNorm.
            eps: epsilon of each GroupNorm.
            time_width: channels of the noise-level embedding; None = the level is no input.
        """
        super().__init__()
        self.checkpointing = False
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = None if time_width is None else nn.Linear(time_width, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """Map `x` (B, in_channels, H, W) to (B, out_channels, H, W).

        `time` (B, time_width) is the embedding of the level after its SiLU, which all blocks share.
        """
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._forward, x, time, use_reentrant=False)
        return self._forward(x, time)

    def _forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            hidden = hidden + self.time_emb_proj(time)[:, :, None, None]
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Halve the size with a 3x3 convolution of stride 2."""

    def __init__(self, channels: int, *, symmetric: bool) -> None:
        """Build the convolution; `symmetric` pads all four sides (U-Net), else right and bottom only (autoencoder)."""
        super().__init__()
        self.symmetric = symmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if symmetric else 0)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H / 2, W / 2)."""
        return self.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the size by repeating pixels, then smooth with a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        """Build the convolution."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Map (B, C, h, w) to (B, C, 2 h, 2 w), or to `size` where the way down had rounded an odd size up."""
        size = (2 * x.shape[2], 2 * x.shape[3]) if size is None else size
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
