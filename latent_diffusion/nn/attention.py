"""Multi-head attention with the kernel in a field: softmax(q k^T / sqrt(d)) v.

Reference: Vaswani et al. 2017, arXiv:1706.03762, eq. (1).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Attention", "ImageAttention", "Kernel", "KeysValues", "automatic", "causal", "sdpa", "written_out"]

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function of q, k, v (B, N, L, d) that returns the attended values (B, N, L, d)."""

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one attention layer, split into heads: each (B, N, L, d)."""


MAX_SCORES = 2**25  # entries B * N * L * S that `automatic` lets lie in memory at once: 64 MB in bfloat16


def automatic(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend with the faster of `sdpa` and `written_out`; q (B, N, L, d), k and v (B, N, S, d) -> (B, N, L, d).

    For bfloat16 on CPUs torch's fused kernel loses to three plain calls: forward and backward take 2 to 4 times as long
    for 64 to 256 queries over 77 tokens (torch 2.15, AVX512-BF16). In float32, and on GPUs, the fused kernel wins.
    """
    slow = q.dtype == torch.bfloat16 and q.device.type == "cpu"
    return written_out(q, k, v) if slow and few_scores(q, k) else sdpa(q, k, v)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend to earlier tokens and the token itself; q, k, v (B, N, L, d) -> (B, N, L, d).

    Backward of torch's fused kernel in bfloat16 on CPUs takes six times as long as the formula (B = 32, N = 4, L = 77,
    d = 64, torch 2.14, AMX). Without gradients the fused kernel is taken.
    """
    trained = torch.is_grad_enabled() and q.requires_grad
    if not (trained and q.dtype == torch.bfloat16 and q.device.type == "cpu" and few_scores(q, k)):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    later = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
    return written_out(q, k, v, later)


def few_scores(q: Tensor, k: Tensor) -> bool:
    """Whether all scores of q (B, N, L, d) and k (B, N, S, d) may lie in memory at once."""
    return q.shape[:-1].numel() * k.shape[-2] <= MAX_SCORES


def written_out(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Attend with the formula as it stands, all scores in memory; shapes as for `sdpa`.

    `hidden` (L, S), bool, is True where a query does not see a key.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, N, L, S)
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    return torch.softmax(scores, dim=-1).to(v.dtype) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend with torch's own choice of kernel; q (B, N, L, d), k and v (B, N, S, d) -> (B, N, L, d)."""
    return F.scaled_dot_product_attention(q, k, v)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Return a view (B, N, L, d) of tokens (B, L, N * d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """Return tokens (B, L, N * d) of heads (B, N, L, d)."""
    return x.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Attention of tokens over themselves or over a context that was projected before."""

    def __init__(self, width: int, heads: int, context_width: int | None = None) -> None:
        """Build the four projections.

        Args:
            width: channels D of the tokens, a multiple of `heads`.
            heads: number of heads N.
            context_width: channels of the context; None = self-attention.
        """
        super().__init__()
        source = width if context_width is None else context_width
        self.heads = heads
        self.kernel: Kernel = automatic
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(source, width, bias=False)
        self.to_v = nn.Linear(source, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def project(self, context: Tensor) -> KeysValues:
        """Return the keys and values of `context` (B, S, context_width), each (B, N, S, d)."""
        return split_heads(self.to_k(context), self.heads), split_heads(self.to_v(context), self.heads)

    def forward(self, x: Tensor, keys_values: KeysValues | None = None) -> Tensor:
        """Attend from tokens `x` (B, L, D) over `keys_values`, or over `x` itself when None."""
        q = split_heads(self.to_q(x), self.heads)
        k, v = self.project(x) if keys_values is None else keys_values
        return self.to_out[0](join_heads(self.kernel(q, k, v)))


class ImageAttention(nn.Module):
    """Self-attention with one head over the pixels of a feature map, with norm and residual (the autoencoder's)."""

    def __init__(self, channels: int, groups: int, eps: float) -> None:
        """Build norm and projections for `channels` channels normed in `groups` groups."""
        super().__init__()
        self.kernel: Kernel = automatic
        self.group_norm = nn.GroupNorm(groups, channels, eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, H, W) plus its attended values."""
        height, width = x.shape[-2:]
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, H * W, C)
        q, k, v = (split_heads(layer(tokens), 1) for layer in (self.to_q, self.to_k, self.to_v))
        out = self.to_out[0](join_heads(self.kernel(q, k, v)))
        return x + out.transpose(1, 2).unflatten(2, (height, width))
