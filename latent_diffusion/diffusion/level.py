"""Noise levels, and the protocols between schedule, denoiser and sampler.

A noisy latent is x = alpha * x0 + sigma * noise (Kingma et al. 2021, arXiv:2107.00630, eq. 1). Levels are host floats
in double precision: no step of a sampler reads a number back from the device.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeAlias, TypeVar, runtime_checkable

from torch import Tensor

from latent_diffusion.diffusion.noise import NoiseSource

__all__ = ["CLEAN_TIME", "Coefficient", "Denoise", "Level", "NoiseSchedule", "OnStep", "Sampler", "Step", "Time"]

CLEAN_TIME = -1.0
"""Time of the clean latent: one training step before time 0, the least noisy level the network knows."""

Coefficient: TypeAlias = float | Tensor
"""alpha or sigma: a host float, or a tensor that broadcasts against (B, C, h, w)."""


Time = TypeVar("Time", float, Tensor)
"""A time: a host float, or a tensor (B,)."""


@dataclass(frozen=True)
class Level:
    """One noise level: x = alpha * x0 + sigma * noise.

    `index` is its place among the levels that a sampler visits (0 = noisiest); `t` is what the network reads,
    in training steps from 0 to num_train_timesteps - 1, or `CLEAN_TIME` for the clean latent. `law` is the schedule it
    belongs to: samplers with intermediate stages ask it for the level in between.
    """

    index: int
    t: float
    alpha: float
    sigma: float
    law: "NoiseSchedule | None" = field(default=None, repr=False, compare=False)

    @property
    def log_snr(self) -> float:
        """log(alpha^2 / sigma^2); +inf for the clean level, -inf where alpha is 0 (arXiv:2107.00630, eq. 2)."""
        if self.sigma == 0.0:
            return math.inf
        return 2.0 * (math.log(self.alpha) - math.log(self.sigma)) if self.alpha > 0.0 else -math.inf

    def at(self, log_snr: float) -> "Level":
        """Return the level of the same law that has this log-SNR."""
        assert self.law is not None, "a level made by hand has no law to find others in"
        return self.law.level_at(log_snr, self.index)

    def at_time(self, t: float) -> "Level":
        """Return the level of the same law at time t."""
        assert self.law is not None, "a level made by hand has no law to find others in"
        return self.law.level(t, self.index)


Denoise: TypeAlias = Callable[[Tensor, Level], Tensor]
"""(x (B, C, h, w), level) -> estimate of x0 (B, C, h, w), float32 both: the only thing a sampler knows."""


@dataclass(frozen=True)
class Step:
    """The result of one step of a sampler: `x` (B, C, h, w) at the next level and the `x0` it was made with."""

    index: int
    x: Tensor
    x0: Tensor


OnStep: TypeAlias = Callable[[Step], bool | None]
"""A function that is called after each step; returning False stops the sampling."""


class NoiseSchedule(Protocol):
    """The noise law: alpha and sigma as functions of time, for training (tensors) and sampling (host floats).

    Implementations are frozen dataclasses whose fields are numbers. One more fact may stand on the class: `schedulers`,
    how a `scheduler_config.json` of diffusers holds it (`diffusion/scheduler_form.py`). A law without it is not saved.
    """

    @property
    def num_train_timesteps(self) -> int:
        """Number T of levels the network is trained on; times run from 0 to T - 1."""
        ...

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma, float64 (B,) each, for integer or fractional times t (B,)."""
        ...

    def level(self, t: float, index: int = 0) -> Level:
        """Return the level at time t as host floats."""
        ...

    def time_of(self, log_snr: float) -> float:
        """Return the time whose level has this log-SNR: the inverse of `level(t).log_snr`."""
        ...

    def level_at(self, log_snr: float, index: int = 0) -> Level:
        """Return the level with this log-SNR, exact in alpha and sigma; its time is `time_of(log_snr)`."""
        ...

    def network_time(self, t: Time) -> Time:
        """Return the network's time input at time t, a number or (B,); for most schedules t itself."""
        ...


@runtime_checkable
class Sampler(Protocol):
    """An algorithm from noise to latent; implementations are frozen dataclasses and keep no state between calls.

    `order` is its order of convergence on the probability-flow ODE (of its noise-free form where it draws noise); 0 for
    those that do not come nearer to it with more steps: made for consistency models, or with steps within a level.
    `intervals` and `fractional` say how such samplers' times are usually spaced and are handed to `levels`. `aliases`
    are the names that other programs have for it: the A1111 web UI's first, then ComfyUI's, InvokeAI's and the classes
    of diffusers.

    Three more facts may stand on the class where they hold:

        automatic    the spacing that A1111's schedule type "Automatic" means for it; linspace where there is none
        ends_by      the field of a diffusers scheduler that decides whether it ends on the clean level, its default, or
                     on the first of the table: "set_alpha_to_one" or "final_sigmas_type"
        schedulers   where one class of diffusers is several samplers here: the fields, and their values, of the
                     `scheduler_config.json` that is this one; fields of the sampler among them are set
    """

    order: ClassVar[int]
    intervals: ClassVar[bool]
    fractional: ClassVar[bool]
    aliases: ClassVar[tuple[str, ...]]

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield one `Step` for each neighbouring pair of `levels`; x (B, C, h, w) is at levels[0]."""
        ...
