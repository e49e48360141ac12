"""Spherical interpolation: a walk between two noises that stays as noisy as they are.

    slerp(a, b, s) = sin((1 - s) w) / sin(w) a + sin(s w) / sin(w) b,    cos(w) = <a, b> / (|a| |b|)

A plain mean of two independent noises has half their variance, and half the variance is a grey picture. Independent
noises of many values are almost orthogonal, for which the weights' squares sum to one.
Reference: Shoemake 1985, "Animating rotation with quaternion curves"; White 2016, arXiv:1609.04468 (for latents).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["slerp"]

NEARLY_PARALLEL = 1e-6  # sin of the angle, below which the formula divides by nothing and a straight line is as good


def slerp(first: Tensor, second: Tensor, shares: Sequence[float]) -> Tensor:
    """Return the point at each share of the way from `first` to `second`, exactly the ends at 0 and 1.

    Args:
        first: (B, ...) float.
        second: (B, ...) float, of the same shape.
        shares: B numbers from 0 to 1, one an image.
    """
    rows = [_between(a, b, share) for a, b, share in zip(first, second, shares, strict=True)]
    return torch.stack(rows)


def _between(a: Tensor, b: Tensor, share: float) -> Tensor:
    if share in (0.0, 1.0):
        return b if share else a
    x, y = a.double().flatten(), b.double().flatten()
    cosine = float(x @ y / (x.norm() * y.norm()).clamp_min(1e-300))
    angle = math.acos(min(max(cosine, -1.0), 1.0))
    if math.sin(angle) < NEARLY_PARALLEL:
        return torch.lerp(a, b, share)
    weights = math.sin((1.0 - share) * angle) / math.sin(angle), math.sin(share * angle) / math.sin(angle)
    return weights[0] * a + weights[1] * b
