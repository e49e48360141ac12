"""The noise level of every sample: drawn by a law of times, with the sample's number as the key."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from latent_diffusion.config import Section
from latent_diffusion.diffusion.time_law import TimeLaw, draw_times
from latent_diffusion.randomness import permutation, uniform

__all__ = ["KeyedTimes", "TimesSettings"]


class TimesSettings(Section):
    """The `objective.times:` section: which noise levels are trained on."""

    law: Literal["uniform", "logit_normal", "importance"] = "uniform"
    """Law of the times: all alike, more in the middle, or in proportion to the weight of the loss."""
    mean: float = 0.0
    """logit_normal: mean of the logit of t / T; above 0 means noisier levels."""
    std: float = Field(default=1.0, gt=0)
    """logit_normal: standard deviation of the same."""
    low: float = Field(default=0.0, ge=0, lt=1)
    """Share of the times, from the clean end, that are left out."""
    high: float = Field(default=1.0, gt=0, le=1)
    """Share of the times from which on they are left out."""


class KeyedTimes:
    """Times of training; `probabilities` (T,) has the probability of each."""

    def __init__(
        self, settings: TimesSettings, weights: Tensor, seed: int, strata: int, among: Sequence[int] | None = None
    ) -> None:
        """Take the law.

        Args:
            settings: of the run.
            weights: weight of the loss at each time, (T,); only the law `importance` reads it.
            seed: of the run.
            strata: pictures of an update over which times are spread evenly; 0: each is drawn for itself.
            among: the only times that are drawn; None = all.

        Raises:
            ConfigError: settings that do not go together.
        """
        law = TimeLaw(settings.law, settings.mean, settings.std, settings.low, settings.high)
        self.probabilities = law.probabilities(len(weights), weights, among)
        self.seed, self.strata = seed, strata

    def __call__(self, samples: Sequence[int]) -> Tensor:
        """Return an integer time for each sample number, (B,)."""
        return draw_times(self.shares(samples), self.probabilities)

    def shares(self, samples: Sequence[int]) -> list[float]:
        """Return a number in [0, 1) for each sample number, spread evenly over the batch if they are stratified."""
        shares = []
        for number in samples:
            share = uniform(self.seed, "t", number)
            if self.strata:
                update, position = divmod(number, self.strata)
                share = (permutation(self.seed, "t order", update, self.strata)[position] + share) / self.strata
            shares.append(share)
        return shares
