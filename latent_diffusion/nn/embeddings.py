"""The noise level as a vector: sinusoids of the time, then two linear layers.

Reference: Vaswani et al. 2017, arXiv:1706.03762, section 3.5; Ho et al. 2020, arXiv:2006.11239, appendix B.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TimeEmbedding", "sinusoids"]

LONGEST_PERIOD = 10000.0  # in units of 2 pi training steps, arXiv:1706.03762


def sinusoids(t: Tensor, width: int) -> Tensor:
    """Return cosines, then sines of times `t` (B,) at width / 2 geometric frequencies: (B, width) float32."""
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * torch.exp(-math.log(LONGEST_PERIOD) * exponent)[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_width, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """Map sinusoids (B, in_width) to (B, width)."""
        return self.linear_2(F.silu(self.linear_1(features)))
