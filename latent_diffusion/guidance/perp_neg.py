"""Perp-Neg: a negative prompt that cannot undo the prompt.

Only the part of the negative's push that stands across the prompt's push is taken away:

    pos = x0(prompt) - x0(empty),   neg = x0(negative) - x0(empty)
    x0  = x0(empty) + scale * (pos - negative_scale * (neg - pos <neg, pos> / |pos|^2))

Reference: Armandpour et al. 2023, arXiv:2304.04968, section 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from latent_diffusion.checks import check_number
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.guidance import (
    LARGEST_SCALE,
    Branch,
    Estimate,
    Guidance,
    GuidanceContext,
    Stage,
    StageOrder,
    StepState,
)
from latent_diffusion.errors import ConfigError

__all__ = ["PerpNeg"]

EACH_IMAGE = (1, 2, 3)  # dimensions of one image's latents
SMALLEST = 1e-12  # of |pos|^2


@dataclass(frozen=True)
class PerpNeg(Guidance):
    """Guidance by prompt, negative prompt and empty prompt. negative_scale 0 = CFG without a negative prompt."""

    neutral: ClassVar[Mapping[str, Any]] = {"scale": 1.0, "negative_scale": 0.0}

    weighs: ClassVar[bool] = True

    scale: float = 7.5
    negative_scale: float = 1.0  # how strongly to move away from the negative prompt

    def __post_init__(self) -> None:
        check_number("perp_neg: scale", self.scale, LARGEST_SCALE)
        check_number("perp_neg: negative_scale", self.negative_scale, LARGEST_SCALE)

    @property
    def needs_negative(self) -> bool:
        """Whether the negative prompt has a weight; the empty one stands in for it otherwise."""
        return self.negative_scale != 0.0

    @property
    def needs_empty(self) -> bool:
        """Always: it is where both pushes start."""
        return True

    def stages(self, context: GuidanceContext) -> tuple[Stage, ...]:
        """Return the sum of the prompt's push and the negative's perpendicular one.

        Raises:
            ConfigError: `bind` was not given the empty prompt.
        """
        if context.empty is None:
            raise ConfigError("perp_neg needs the empty prompt's condition; give `empty` to `bind`")
        nothing = _like(context.empty, context.conditions[1])
        needs = (nothing, context.negative) if self.negative_scale else (nothing,)

        def apply(now: StepState) -> Tensor:
            start = now[nothing]
            push = positive = now.plain - start
            if self.negative_scale:
                negative = now[context.negative] - start
                along = (negative * positive).sum(EACH_IMAGE, keepdim=True)
                along = along / positive.square().sum(EACH_IMAGE, keepdim=True).clamp(min=SMALLEST)
                push = positive - self.negative_scale * (negative - along * positive)
            return start + self.scale * push

        return (Stage(StageOrder.WEIGH, apply, needs),)


def _like(empty: Estimate, other: Conditioning) -> Estimate:
    """Return the empty prompt with the sizes and extra channels of `other`, where it has none of its own."""
    ((branch, weight),) = empty.terms
    missing = {name: getattr(other, name) for name in ("size_ids", "concat") if getattr(branch.cond, name) is None}
    return Estimate(((Branch(branch.denoiser, replace(branch.cond, **missing)), weight),))
