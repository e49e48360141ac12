"""Dynamic thresholding: bring values that strong guidance drove too far back into range, whole image by whole image.

With s the `quantile` of |x0| of one image, and s at least `limit`,

    x0 = clip(x0, -s, s) * limit / s

Pixels have a range, so there `limit` is 1 (the paper). Latents have none: without a `limit`, each channel is centred
and its limit is the largest value that guidance of strength `mimic_scale` would give.
Reference: Saharia et al. 2022, arXiv:2205.11487, section 2.3.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from latent_diffusion.checks import check_number
from latent_diffusion.diffusion.guidance import LARGEST_SCALE, Guidance, GuidanceContext, Stage, StageOrder, StepState

__all__ = ["Threshold"]


@dataclass(frozen=True)
class Threshold(Guidance):
    """Dynamic thresholding. A huge `limit` is off; without a `limit`, an unguided estimate stays as it is."""

    neutral: ClassVar[Mapping[str, Any]] = {"limit": 1e9}

    quantile: float = 0.995  # of the absolute values; more lies outside, the lower it is
    limit: float = 0.0  # largest absolute value x0 may have: 1 for models of pixels; 0 = from `mimic_scale`
    mimic_scale: float = 1.0  # guidance strength whose range is kept; 1 = the prompt alone

    def __post_init__(self) -> None:
        check_number("threshold: quantile", self.quantile, 1.0)
        check_number("threshold: limit", self.limit, math.inf)
        check_number("threshold: mimic_scale", self.mimic_scale, LARGEST_SCALE)

    @property
    def needs_negative(self) -> bool:
        """Whether the range is that of a guided estimate."""
        return not self.limit and self.mimic_scale != 1.0

    def stages(self, context: GuidanceContext) -> tuple[Stage, ...]:
        """Return the correction."""

        def apply(now: StepState) -> Tensor:
            if self.limit:
                return _thresholded(now.guided.flatten(1), self.quantile, self.limit).view_as(now.guided)
            if now.guided is now.plain:
                return now.plain
            kept = now.plain
            if self.mimic_scale != 1.0:
                kept = now[context.negative] + self.mimic_scale * (now.plain - now[context.negative])
            values, mean = _centred(now.guided)
            limit = _centred(kept)[0].abs().amax(-1, keepdim=True)  # (B, C, 1)
            return (_thresholded(values, self.quantile, limit) + mean).view_as(now.guided)

        return (Stage(StageOrder.CORRECT, apply, (context.negative,) if self.needs_negative else ()),)


def _centred(x0: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values of each channel about their mean (B, C, h * w), and the means (B, C, 1)."""
    mean = x0.flatten(2).mean(-1, keepdim=True)
    return x0.flatten(2) - mean, mean


def _thresholded(values: Tensor, quantile: float, limit: float | Tensor) -> Tensor:
    """Clip `values` (..., N) to their own quantile and shrink them so that none exceeds `limit`."""
    reach = torch.quantile(values.abs(), quantile, dim=-1, keepdim=True)
    reach = torch.maximum(reach, torch.as_tensor(limit, dtype=reach.dtype, device=reach.device))
    return values.clamp(-reach, reach) * (limit / reach)
