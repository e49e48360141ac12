"""Autoguidance: guide a model with a bad version of itself.

    x0 = x0(weak) + scale * (x0(model) - x0(weak)),   both with the prompt

The weak one is smaller or less trained on the same data, so it errs in the same way but more; moving away from it
leaves the variety that CFG costs. Added to what other guidances make: x0 + (scale - 1) * (x0(model) - x0(weak)).
Reference: Karras et al. 2024, arXiv:2406.02507, section 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from latent_diffusion.checks import check_number
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.guidance import (
    LARGEST_SCALE,
    Guidance,
    GuidanceContext,
    Models,
    Stage,
    StageOrder,
    StepState,
)
from latent_diffusion.errors import ConfigError

__all__ = ["Autoguidance"]


@dataclass(frozen=True)
class Autoguidance(Guidance):
    """Guidance by a weaker checkpoint, one more network call a step; scale 1 is the model alone."""

    neutral: ClassVar[Mapping[str, Any]] = {"scale": 1.0}

    scale: float
    weak: Denoiser  # understands the same text states and latents
    model: str = ""  # the weak checkpoint's name or path, for the record of what made a picture

    @classmethod
    def from_values(cls, values: Mapping[str, Any], models: Models) -> "Autoguidance":
        """Open the weak checkpoint that `model` names; scale 2 where none is given."""
        if not values.get("model"):
            raise ConfigError("guidance 'autoguidance' needs model=NAME|PATH, the weaker checkpoint")
        return cls(**{"scale": 2.0, **values, "weak": models.denoiser(values["model"])})

    def __post_init__(self) -> None:
        check_number("autoguidance: scale", self.scale, LARGEST_SCALE)

    def stages(self, context: GuidanceContext) -> tuple[Stage, ...]:
        """Return the push away from the weak model."""
        if self.scale == 1.0:
            return ()
        weak = context.seen_by(self.weak)

        def apply(now: StepState) -> Tensor:
            return now.guided + (self.scale - 1.0) * (now.plain - now[weak])

        return (Stage(StageOrder.PUSH, apply, needs=(weak,)),)
