"""Whether a faster way gives the plain way's numbers, within the rounding of a number format."""

import math

import torch
from torch import Tensor

__all__ = ["TOLERANCE", "agree", "error"]

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # relative, of the whole tensor


def error(found: Tensor, wanted: Tensor) -> float:
    """Return |found - wanted| / |wanted| in float32; infinite where their shapes differ or one has NaN."""
    if found.shape != wanted.shape:
        return math.inf
    off = float((found.float() - wanted.float()).norm() / wanted.float().norm())
    return math.inf if math.isnan(off) else off


def agree(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    """Whether `found`, computed in `dtype`, is `wanted` but for rounding."""
    return error(found, wanted) <= TOLERANCE[dtype]
