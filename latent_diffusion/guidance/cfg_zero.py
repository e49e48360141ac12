"""CFG-Zero*: classifier-free guidance with the negative's output scaled to fit, made for flow models.

    s      = <output(prompt), output(negative)> / |output(negative)|^2
    output = s * output(negative) + scale * (output(prompt) - s * output(negative))

and for the first `zero_steps` steps output = 0, where a flow model's velocity is worse than none.
Reference: Fan et al. 2025, arXiv:2503.18886, section 4 and algorithm 1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from latent_diffusion.checks import check_number
from latent_diffusion.diffusion.guidance import LARGEST_SCALE, Guidance, GuidanceContext, Stage, StageOrder, StepState
from latent_diffusion.diffusion.level import Level
from latent_diffusion.errors import ConfigError

__all__ = ["CFGZero"]

EACH_IMAGE = (1, 2, 3)  # dimensions of one image's latents
SMALLEST = 1e-8  # added to |output|^2
VELOCITIES = ("flow_prediction",)  # outputs whose zero means that x stands still


@dataclass(frozen=True)
class CFGZero(Guidance):
    """Classifier-free guidance with an optimal scale of the negative; scale 1 is the prompt alone."""

    neutral: ClassVar[Mapping[str, Any]] = {"scale": 1.0}

    weighs: ClassVar[bool] = True

    scale: float = 7.5
    zero_steps: int = 0  # first steps whose output is zero; the paper takes 4 % of the steps; flow models only

    def __post_init__(self) -> None:
        check_number("cfg_zero: scale", self.scale, LARGEST_SCALE)
        check_number("cfg_zero: zero_steps", self.zero_steps, 1000)

    @property
    def needs_negative(self) -> bool:
        """Whether the scale gives the negative prompt a weight."""
        return self.scale != 1.0

    def stages(self, context: GuidanceContext) -> tuple[Stage, ...]:
        """Return algorithm 1.

        Raises:
            ConfigError: `zero_steps` for a network whose output is no velocity, or without levels.
        """
        denoiser, end = context.denoiser, self._end_of_zeros(context)
        if self.scale == 1.0 and not self.zero_steps:
            return ()

        def still(level: Level) -> bool:
            return level.log_snr < end

        def stay(now: StepState) -> Tensor:
            return denoiser.x0(now.x * 0.0, now.x, now.level)

        def apply(now: StepState) -> Tensor:
            towards, away = (denoiser.output(x0, now.x, now.level) for x0 in (now.plain, now[context.negative]))
            fit = (towards * away).sum(EACH_IMAGE, keepdim=True) / (
                away.square().sum(EACH_IMAGE, keepdim=True) + SMALLEST
            )
            guided = fit * away + self.scale * (towards - fit * away)
            return denoiser.x0(guided, now.x, now.level)

        guiding = Stage(
            StageOrder.WEIGH, apply, (context.negative,), lambda level: self.scale != 1.0 and not still(level)
        )
        return (Stage(StageOrder.WEIGH, stay, (), still), guiding) if self.zero_steps else (guiding,)

    def _end_of_zeros(self, context: GuidanceContext) -> float:
        """Return the log-SNR of the first level that is not zeroed."""
        if not self.zero_steps:
            return -math.inf
        if context.denoiser.prediction.name not in VELOCITIES:
            raise ConfigError(
                f"cfg_zero: zero_steps {self.zero_steps} needs a flow model; this network predicts "
                f"{context.denoiser.prediction.name!r}, and an output of zero changes its latents; use 0"
            )
        if not self.zero_steps < len(context.levels):
            raise ConfigError(
                f"cfg_zero: zero_steps {self.zero_steps} of {max(len(context.levels) - 1, 0)} steps; use fewer"
            )
        return context.levels[self.zero_steps].log_snr
