"""Transformer over the pixels of a feature map, with cross-attention to the context.

Reference: Rombach et al. 2022, arXiv:2112.10752, section 3.3 and appendix E.2.1; gated feed-forward: Shazeer 2020,
arXiv:2002.05202, eq. (6).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latent_diffusion.nn.attention import Attention, KeysValues

__all__ = ["SpatialTransformer", "TransformerBlock"]

NORM_EPS = 1e-6  # of the GroupNorm before the tokens, in every published model
FEED_FORWARD_GROWTH = 4  # hidden width of the feed-forward layer over that of the tokens


def gated_gelu(x: Tensor) -> Tensor:
    """Return values times the GELU of their gates, (..., D) of x (..., 2 D): values, then gates."""
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


class GatedLinear(nn.Module):
    """Linear layer whose one half is gated by the GELU of the other, by the function in a field."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.kernel: Callable[[Tensor], Tensor] = gated_gelu
        self.proj = nn.Linear(width, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, width) to (B, L, hidden)."""
        return self.kernel(self.proj(x))


class FeedForward(nn.Module):
    """Gated linear layer and a linear layer back, token by token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = FEED_FORWARD_GROWTH * width
        # index 1 is the published models' dropout of 0
        self.net = nn.Sequential(GatedLinear(width, hidden), nn.Identity(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, D) to the same shape."""
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward; each after a LayerNorm and added to its input."""

    def __init__(self, width: int, heads: int, context_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, heads, context_width)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, context: KeysValues) -> Tensor:
        """Map tokens `x` (B, L, D) to the same shape; `context` are the cross-attention's keys and values."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks between two projections, added to the feature map."""

    def __init__(
        self, channels: int, heads: int, context_width: int, *, layers: int, groups: int, linear_projection: bool
    ) -> None:
        """Build the blocks.

        Args:
            channels: channels of the feature map and width of the tokens, a multiple of `heads`.
            heads: attention heads.
            context_width: channels of the context.
            layers: number of transformer blocks.
            groups: groups of the GroupNorm.
            linear_projection: project tokens with a linear layer (SD 2) in place of a 1x1 convolution (SD 1).
        """
        super().__init__()
        self.checkpointing = False
        self.linear_projection = linear_projection
        self.norm = nn.GroupNorm(groups, channels, NORM_EPS)
        self.proj_in = nn.Linear(channels, channels) if linear_projection else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(channels, heads, context_width) for _ in range(layers))
        self.proj_out = nn.Linear(channels, channels) if linear_projection else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Sequence[KeysValues]) -> Tensor:
        """Map `x` (B, C, H, W) to the same shape; `context` holds keys and values of each block."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._forward, x, context, use_reentrant=False)
        return self._forward(x, context)

    def _forward(self, x: Tensor, context: Sequence[KeysValues]) -> Tensor:
        size = x.shape[-2:]
        if self.linear_projection:
            tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # (B, H * W, C)
        else:
            tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block, keys_values in zip(self.transformer_blocks, context, strict=True):
            tokens = block(tokens, keys_values)
        if self.linear_projection:
            return x + self.proj_out(tokens).transpose(1, 2).unflatten(2, size)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, size))
