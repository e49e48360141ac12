"""A network of one variable that only rises: the noise level over the share of the way from picture to noise.

    raw(u) = h + sum_k w_k sigmoid(a_k h + b_k),   h = w u,   w, w_k and a_k above 0

Reference: Kingma et al. 2021, arXiv:2107.00630, appendix on the monotone network of the noise schedule.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MonotoneNetwork"]


class MonotoneNetwork(nn.Module):
    """A smooth function that rises from `low` at 0 to `high` at 1; at first it is nearly straight."""

    def __init__(self, low: float, high: float, width: int = 32) -> None:
        """Build it without any random number.

        Args:
            low: the value at 0.
            high: the value at 1, above `low`.
            width: number of sigmoids, whose centres are spread evenly.
        """
        super().__init__()
        self.low, self.high = low, high
        centres = (torch.arange(width) + 0.5) / width
        self.slope = nn.Parameter(torch.tensor(_before_softplus(1.0)))
        self.sharpness = nn.Parameter(torch.full((width,), _before_softplus(float(width))))
        self.shift = nn.Parameter(-float(width) * centres)
        self.height = nn.Parameter(torch.full((width,), _before_softplus(1.0 / width)))

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values (B,) at u (B,), 0 to 1, and their slopes, above 0."""
        value, slope = self._raw(u)
        ends, _ = self._raw(u.new_tensor([0.0, 1.0]))
        scale = (self.high - self.low) / (ends[1] - ends[0])
        return self.low + scale * (value - ends[0]), scale * slope

    def _raw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        first, sharpness, height = (F.softplus(weight) for weight in (self.slope, self.sharpness, self.height))
        line = first * u
        gates = torch.sigmoid(sharpness * line[:, None] + self.shift)
        return line + (height * gates).sum(1), first * (1.0 + (height * sharpness * gates * (1.0 - gates)).sum(1))


def _before_softplus(value: float) -> float:
    """Return what softplus maps to `value`."""
    return value + math.log(-math.expm1(-value))
