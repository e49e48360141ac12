"""Guide only at some noise levels: outside the interval a guidance asks for nothing and changes nothing.

Guidance at the highest noise harms variety and at the lowest does nothing that can be seen, so leaving both out is
better and cheaper. Reference: Kynkaanniemi et al. 2024, arXiv:2404.07724, whose sigma is sigma / alpha here.
"""

import math
from dataclasses import dataclass, replace

from latent_diffusion.diffusion.guidance import Guidance, GuidanceContext, Stage
from latent_diffusion.diffusion.level import Level
from latent_diffusion.errors import ConfigError

__all__ = ["Interval"]


@dataclass(frozen=True)
class Interval(Guidance):
    """A guidance that is on for a part of the way, told in steps or in noise; both together hold together."""

    guidance: Guidance
    start: float = 0.0  # share of the steps after which it begins; step k of n is on if int(start n) <= k < int(stop n)
    stop: float = 1.0  # share of the steps after which it ends
    sigma_low: float = 0.0  # on where sigma / alpha is above this
    sigma_high: float = math.inf  # and not above this

    def __post_init__(self) -> None:
        """Check the ends.

        Raises:
            ConfigError: ends outside their range, or the first not before the last.
        """
        if not 0.0 <= self.start < self.stop <= 1.0:
            raise ConfigError(
                f"interval of guidance from {self.start} to {self.stop} of the steps; use 0 <= start < stop <= 1"
            )
        if not 0.0 <= self.sigma_low < self.sigma_high:
            raise ConfigError(
                f"interval of guidance from sigma {self.sigma_low} to {self.sigma_high}; use 0 <= low < high"
            )

    @property
    def needs_negative(self) -> bool:
        """Whether the guidance inside does."""
        return self.guidance.needs_negative

    @property
    def needs_empty(self) -> bool:
        """Whether the guidance inside does."""
        return self.guidance.needs_empty

    def stages(self, context: GuidanceContext) -> tuple[Stage, ...]:
        """Return the inner stages, off outside the interval."""
        noisy, clean = self._ends(context)

        def active(level: Level) -> bool:
            ratio = level.sigma / level.alpha if level.alpha else math.inf
            return noisy <= level.log_snr < clean and self.sigma_low < ratio <= self.sigma_high

        def within(stage: Stage) -> Stage:
            return replace(stage, active=lambda level: active(level) and stage.active(level))

        return tuple(within(stage) for stage in self.guidance.stages(context))

    def _ends(self, context: GuidanceContext) -> tuple[float, float]:
        """Return the log-SNR of the first level that is on and of the first after it that is off."""
        if (self.start, self.stop) == (0.0, 1.0):
            return -math.inf, math.inf
        if not context.levels:
            raise ConfigError(
                "an interval in steps needs the levels; give them to `bind`, or give the interval in sigma"
            )
        steps = len(context.levels) - 1
        first, last = (context.levels[int(share * steps + 1e-9)].log_snr for share in (self.start, self.stop))
        return (-math.inf if self.start == 0.0 else first), (math.inf if self.stop == 1.0 else last)
