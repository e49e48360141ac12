"""Discrete variance-preserving noise laws: a table of betas, as in DDPM.

    alpha_bar[t] = prod_{s <= t} (1 - beta[s]),   alpha = sqrt(alpha_bar),   sigma = sqrt(1 - alpha_bar)

(Ho et al. 2020, arXiv:2006.11239, eq. 4). Tables are float64. Time -1 is the clean latent (alpha 1, sigma 0). Between
two integer times the log-SNR is interpolated linearly, which is also how diffusers turns a sigma into a time.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from latent_diffusion.diffusion.level import CLEAN_TIME, Level, Time
from latent_diffusion.diffusion.scheduler_form import SchedulerForm
from latent_diffusion.errors import ConfigError

__all__ = ["DiscreteVP", "betas_named", "zero_terminal"]


@dataclass(frozen=True)
class DiscreteVP(ABC):
    """Base of the beta tables; a subclass adds its constants and says what its betas are."""

    num_train_timesteps: int = 1000  # T, number of noise levels
    zero_terminal_snr: bool = False  # rescale so that the last level is pure noise (alpha exactly 0)

    def __post_init__(self) -> None:
        if self.num_train_timesteps < 2:
            raise ConfigError(f"num_train_timesteps is {self.num_train_timesteps}; use at least 2")
        betas = self.betas()
        if not ((betas > 0.0) & (betas < 1.0)).all():
            raise ConfigError(f"betas of {self} leave (0, 1): {betas.min():.3g} to {betas.max():.3g}")
        if betas[0] > betas[-1]:
            raise ConfigError(f"betas of {self} fall from {betas[0]:.3g} to {betas[-1]:.3g}; the first is the least")

    @abstractmethod
    def betas(self) -> np.ndarray:
        """Return the variances added by each forward step, float64 (T,), before any rescaling."""

    @cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """alpha_bar, float64 (T,): strictly falling; the last one is exactly 0 with `zero_terminal_snr`."""
        alpha_bar = np.cumprod(1.0 - self.betas())
        return zero_terminal(alpha_bar) if self.zero_terminal_snr else alpha_bar

    @cached_property
    def _alpha_table(self) -> np.ndarray:
        return np.concatenate([[1.0], np.sqrt(self.alphas_cumprod)])  # (T + 1,), entry t + 1 is time t

    @cached_property
    def _sigma_table(self) -> np.ndarray:
        return np.concatenate([[0.0], np.sqrt(1.0 - self.alphas_cumprod)])

    @cached_property
    def _log_snr_table(self) -> np.ndarray:
        with np.errstate(divide="ignore"):  # +inf at the clean level, -inf at zero terminal SNR
            return 2.0 * (np.log(self._alpha_table) - np.log(self._sigma_table))

    @cached_property
    def _device_tables(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}  # a memo of constants, filled per device

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma, float64 (B,) each on t's device, for integer times t (B,) in -1 .. T - 1.

        Fractional times are served through `level`, on the host.
        """
        if t.is_floating_point():
            levels = [self.level(float(v)) for v in t.flatten().tolist()]
            values = torch.tensor([[lv.alpha, lv.sigma] for lv in levels], dtype=torch.float64, device=t.device)
            return values[:, 0].reshape(t.shape), values[:, 1].reshape(t.shape)
        if t.device not in self._device_tables:
            alpha, sigma = torch.from_numpy(self._alpha_table), torch.from_numpy(self._sigma_table)
            self._device_tables[t.device] = alpha.to(t.device), sigma.to(t.device)
        alpha, sigma = self._device_tables[t.device]
        return alpha[t + 1], sigma[t + 1]

    def level(self, t: float, index: int = 0) -> Level:
        """Return the level at time t, -1 (clean) <= t <= T - 1.

        Raises:
            ConfigError: t is outside that range.
        """
        if not CLEAN_TIME <= t <= self.num_train_timesteps - 1:
            raise ConfigError(f"time {t} is outside -1 (clean) to {self.num_train_timesteps - 1}")
        row = math.floor(t) + 1
        share = t - math.floor(t)
        if share == 0.0:
            return Level(index, float(t), float(self._alpha_table[row]), float(self._sigma_table[row]), self)
        left, right = self._log_snr_table[row], self._log_snr_table[row + 1]
        if math.isfinite(left) and math.isfinite(right):
            ratio = math.exp(-0.5 * ((1.0 - share) * left + share * right))  # sigma / alpha
            alpha = 1.0 / math.hypot(1.0, ratio)
            return Level(index, t, alpha, ratio * alpha, self)
        angle = (1.0 - share) * self._angle(row) + share * self._angle(row + 1)
        return Level(index, t, math.cos(angle), math.sin(angle), self)

    def level_at(self, log_snr: float, index: int = 0) -> Level:
        """Return the level with this log-SNR, exact in alpha and sigma; its time is `time_of(log_snr)`."""
        if log_snr == math.inf:
            return self.level(CLEAN_TIME, index)
        if log_snr == -math.inf:
            return Level(index, self.time_of(log_snr), 0.0, 1.0, self)
        ratio = math.exp(-0.5 * log_snr)  # sigma / alpha
        alpha = 1.0 / math.hypot(1.0, ratio)  # alpha^2 + sigma^2 = 1
        return Level(index, self.time_of(log_snr), alpha, ratio * alpha, self)

    def network_time(self, t: Time) -> Time:
        """Return t: the network is told the time itself."""
        return t

    def time_of(self, log_snr: float) -> float:
        """Return the time whose log-SNR this is: inverse of `level(t).log_snr`, clipped to 0 .. T - 1.

        A log-SNR above that of time 0 belongs to no level the network knows, and gives 0 (+inf gives -1, clean).
        """
        if log_snr == math.inf:
            return CLEAN_TIME
        table = self._log_snr_table[1:]
        row = int(np.searchsorted(-table, -log_snr, side="right")) - 1  # table[row] >= log_snr > table[row + 1]
        if row < 0:
            return 0.0
        if row >= len(table) - 1:
            return float(len(table) - 1)
        left, right = table[row], table[row + 1]
        if math.isfinite(right):
            return float(row + (left - log_snr) / (left - right))
        low, high = self._angle(row + 1), self._angle(row + 2)
        return float(row + (math.atan2(1.0, math.exp(0.5 * log_snr)) - low) / (high - low))

    def _angle(self, row: int) -> float:
        """atan(sigma / alpha): finite where the log-SNR is not."""
        return math.atan2(float(self._sigma_table[row]), float(self._alpha_table[row]))


def betas_named(name: str) -> SchedulerForm:
    """Return the form of a table that is `beta_schedule: name` in diffusers; other fields have the same names there."""
    return SchedulerForm({"beta_schedule": name}, names={"zero_terminal_snr": "rescale_betas_zero_snr"})


def zero_terminal(alpha_bar: np.ndarray) -> np.ndarray:
    """Shift and scale sqrt(alpha_bar) so that its last value is 0 and its first is kept.

    Reference: Lin et al. 2023, arXiv:2305.08891, algorithm 1.
    """
    alpha = np.sqrt(alpha_bar)
    return ((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))) ** 2
