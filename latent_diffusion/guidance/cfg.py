"""Classifier-free guidance.

    x0 = x0(negative) + scale * (x0(prompt) - x0(negative))

Reference: Ho & Salimans 2022, arXiv:2207.12598, eq. 6, where w = scale - 1. The weights sum to one and x is the same in
both rows, so combining x0 equals combining epsilon or v.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from latent_diffusion.checks import check_number
from latent_diffusion.diffusion.guidance import LARGEST_SCALE, Guidance, GuidanceContext, Stage, StageOrder, StepState
from latent_diffusion.guidance.rescale import rescaled

__all__ = ["CFG"]


@dataclass(frozen=True)
class CFG(Guidance):
    """Classifier-free guidance with a negative prompt, in one batched call of the network."""

    neutral: ClassVar[Mapping[str, Any]] = {"scale": 1.0}

    weighs: ClassVar[bool] = True

    scale: float = 7.5  # 1 = the prompt alone, at half the cost; larger follows the prompt more closely
    rescale: float = 0.0  # 0 = off, 1 = exactly the unguided spread; see `guidance/rescale.py`

    def __post_init__(self) -> None:
        check_number("cfg: scale", self.scale, LARGEST_SCALE)
        check_number("cfg: rescale", self.rescale, 1.0)

    @property
    def needs_negative(self) -> bool:
        """Whether the scale gives the negative prompt a weight."""
        return self.scale != 1.0

    def stages(self, context: GuidanceContext) -> tuple[Stage, ...]:
        """Return eq. 6."""
        if self.scale == 1.0:
            return ()

        def apply(now: StepState) -> Tensor:
            away = now[context.negative]
            guided = away + self.scale * (now.plain - away)
            return rescaled(context.denoiser, now, guided, self.rescale) if self.rescale else guided

        return (Stage(StageOrder.WEIGH, apply, needs=(context.negative,)),)
