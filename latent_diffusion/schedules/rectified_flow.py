"""Rectified flow: the straight line between picture and noise.

    x = (1 - u) x0 + u noise,     u = shift v / (1 + (shift - 1) v),     v = (t + 1) / T

Reference: Liu et al. 2023, arXiv:2209.03003, eq. 1; the shift is that of Esser et al. 2024, arXiv:2403.03206, eq. 23.
T discrete times stand for the line, so that everything that counts times works on it: time T - 1 is pure noise (alpha
exactly 0), time -1 the clean latent. The network's time is T u, as in diffusers' flow-matching schedulers.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from latent_diffusion.diffusion.level import CLEAN_TIME, Level, Time
from latent_diffusion.diffusion.prediction import FLOW
from latent_diffusion.diffusion.scheduler_form import SchedulerForm
from latent_diffusion.errors import ConfigError

__all__ = ["RectifiedFlow"]

_ONE_SHIFT = {"use_dynamic_shifting": "only a rectified flow with one shift is read"}
_MATCHING = {"prediction": FLOW.name, "writes_prediction": False, "refused": _ONE_SHIFT}


@dataclass(frozen=True)
class RectifiedFlow:
    """alpha = 1 - u, sigma = u."""

    num_train_timesteps: int = 1000  # T, number of noise levels
    shift: float = 1.0  # above 1 spends more of the times on noisy levels; 3 for Stable Diffusion 3

    schedulers: ClassVar[tuple[SchedulerForm, ...]] = (
        SchedulerForm({"_class_name": "FlowMatchEulerDiscreteScheduler"}, **_MATCHING),
        SchedulerForm({"_class_name": "FlowMatch*"}, **_MATCHING),
        SchedulerForm(
            {"use_flow_sigmas": True}, names={"shift": "flow_shift"}, prediction=FLOW.name, refused=_ONE_SHIFT
        ),
    )

    def __post_init__(self) -> None:
        if self.num_train_timesteps < 2:
            raise ConfigError(f"num_train_timesteps is {self.num_train_timesteps}; use at least 2")
        if not 0.0 < self.shift < math.inf:
            raise ConfigError(f"shift {self.shift} is out of range; use a number above 0, 1 for none")

    @property
    def zero_terminal_snr(self) -> bool:
        """Always: the last level is pure noise."""
        return True

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma, float64 (B,) each on t's device, for times t (B,) in -1 .. T - 1."""
        u = self._u(t.double())
        return 1.0 - u, u

    def level(self, t: float, index: int = 0) -> Level:
        """Return the level at time t, -1 (clean) <= t <= T - 1.

        Raises:
            ConfigError: t is outside that range.
        """
        if not CLEAN_TIME <= t <= self.num_train_timesteps - 1:
            raise ConfigError(f"time {t} is outside -1 (clean) to {self.num_train_timesteps - 1}")
        u = self._u(float(t))
        return Level(index, float(t), 1.0 - u, u, self)

    def time_of(self, log_snr: float) -> float:
        """Return the time whose log-SNR this is, clipped to 0 .. T - 1; +inf gives -1, clean."""
        if log_snr == math.inf:
            return CLEAN_TIME
        u = _u_of(log_snr)
        v = u / (self.shift - (self.shift - 1.0) * u)  # inverse of the shift
        return min(max(v * self.num_train_timesteps - 1.0, 0.0), self.num_train_timesteps - 1.0)

    def level_at(self, log_snr: float, index: int = 0) -> Level:
        """Return the level with this log-SNR, exact in alpha and sigma; its time is `time_of(log_snr)`."""
        if log_snr == math.inf:
            return self.level(CLEAN_TIME, index)
        u = _u_of(log_snr)
        return Level(index, self.time_of(log_snr), 1.0 - u, u, self)

    def network_time(self, t: Time) -> Time:
        """Return T u at time t: the network's time."""
        return self.num_train_timesteps * self._u(t)

    def _u(self, t: Time) -> Time:
        v = (t + 1.0) / self.num_train_timesteps
        return self.shift * v / (1.0 + (self.shift - 1.0) * v)


def _u_of(log_snr: float) -> float:
    """Solve (1 - u) / u = exp(log_snr / 2); 1 for -inf."""
    return 1.0 / (1.0 + math.exp(0.5 * log_snr)) if log_snr < 1400.0 else math.exp(-0.5 * log_snr)
