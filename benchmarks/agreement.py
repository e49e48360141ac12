"""How far a result is from the reference: diffusers in float32 with the same weights and inputs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Agreement", "agreement"]


@dataclass(frozen=True)
class Agreement:
    """Distances from the reference."""

    error: float  # |found - reference| / |reference|, L2 norms, of what the case makes first
    max_abs: float  # largest difference of one number
    psnr: float | None = None  # of pictures in [0, 1], dB; None where there are none


def agreement(found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Agreement:
    """Compare what a tool made with the reference; names are the same, and shapes but for their length."""
    name = next(iter(reference))
    count = min(len(found[name]), len(reference[name]))  # losses: one a step, and not all ran equally far
    wanted = reference[name][:count].double()
    difference = found[name][:count].double() - wanted
    psnr = None
    if "images" in reference:
        mse = (found["images"].double() - reference["images"].double()).square().mean().item()
        psnr = 10 * math.log10(1 / mse) if mse else math.inf
    return Agreement((difference.norm() / wanted.norm()).item(), difference.abs().max().item(), psnr)
