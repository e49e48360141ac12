"""How often each time is trained on: a probability for each of 0 .. T - 1, and times drawn by it.

    uniform        1 / T                                         Ho et al. 2020, arXiv:2006.11239, algorithm 1
    logit_normal   t / T = sigmoid(mean + std * normal)          Esser et al. 2024, arXiv:2403.03206, eq. (19)
    importance     in proportion to the weight of the loss, which then is the same for every time
                                                                 Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.3

Importance has the expected loss and gradient of the weighted loss under uniform times.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import nearest

__all__ = ["TIME_LAWS", "TimeLaw", "draw_times"]

TIME_LAWS = ("uniform", "logit_normal", "importance")


@dataclass(frozen=True)
class TimeLaw:
    """A law over the times of training.

    Attributes:
        name: one of `TIME_LAWS`.
        mean: of the logit of t / T, for `logit_normal`; above 0 = noisier.
        std: of the same, above 0.
        low: share of the times below which none is drawn, 0 .. 1.
        high: share of the times from which on none is drawn, 0 .. 1.

    Raises:
        ConfigError: an unknown law, or numbers out of range or without use.
    """

    name: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in TIME_LAWS:
            known = ", ".join(TIME_LAWS)
            raise ConfigError(f"unknown law of times {self.name!r}{nearest(self.name, TIME_LAWS)}; use {known}")
        if self.name != "logit_normal" and (self.mean, self.std) != (0.0, 1.0):
            raise ConfigError(f"the law of times {self.name!r} has no mean and std; leave them out")
        if not (math.isfinite(self.mean) and 0.0 < self.std < math.inf):
            raise ConfigError(f"mean {self.mean} and std {self.std} of the times: use finite numbers, std above 0")
        if not 0.0 <= self.low < self.high <= 1.0:
            raise ConfigError(f"times from {self.low} to {self.high}: use shares with 0 <= low < high <= 1")

    def probabilities(
        self, total: int, weights: Tensor | None = None, among: Sequence[int] | None = None
    ) -> np.ndarray:
        """Return the probability of each time, float64 (T,).

        Args:
            total: number T of times.
            weights: weight of the loss at each time (T,), which `importance` needs.
            among: the only times that are drawn; None = all in the range.

        Raises:
            ConfigError: no time lies in the range, or none of them has a weight above 0.
        """
        edges = np.arange(total + 1) / total
        if self.name == "logit_normal":
            cumulated = np.array([_normal_cdf((_logit(edge) - self.mean) / self.std) for edge in edges])
            made = np.diff(cumulated)
        elif self.name == "importance":
            assert weights is not None, "importance is that of the loss's weights"
            made = weights.double().cpu().numpy().copy()
        else:
            made = np.full(total, 1.0 / total)
        times = np.arange(total)
        made[(times < math.floor(self.low * total)) | (times >= math.ceil(self.high * total))] = 0.0
        if among is not None:
            made[~np.isin(times, among)] = 0.0
        if not (np.isfinite(made).all() and made.sum() > 0.0):
            raise ConfigError(f"no time from {self.low:g} to {self.high:g} of {total} has a finite weight above 0")
        return made / made.sum()


def draw_times(shares: Sequence[float], probabilities: np.ndarray) -> Tensor:
    """Return the time at each share (0 .. 1) of the cumulated probabilities, int64 (B,)."""
    cumulated = np.cumsum(probabilities)
    found = np.searchsorted(cumulated, np.asarray(shares) * cumulated[-1], side="right")
    last = int(np.flatnonzero(probabilities)[-1])  # a share of nearly 1 may round beyond it
    return torch.from_numpy(np.minimum(found, last))


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def _logit(share: float) -> float:
    if share <= 0.0:
        return -math.inf
    return math.inf if share >= 1.0 else math.log(share / (1.0 - share))
