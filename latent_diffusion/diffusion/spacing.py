"""Spacing: which noise levels a sampler visits.

    leading    multiples of T // steps, plus `steps_offset`; never reaches the last training time
    linspace   equal parts of 0 .. T - 1, both ends included
    trailing   from T - 1 down in equal parts of T; the choice for zero terminal SNR
    karras     equal parts of (sigma / alpha)^(1/7) between the noisiest and the least noisy level

The first three are table 2 of Lin et al. 2023, arXiv:2305.08891; karras is eq. 5 of Karras et al. 2022,
arXiv:2206.00364. Times and rounding are those of diffusers, which has two habits: DDPM and DDIM divide the training
times into `steps` points, its multistep solver into `steps + 1` points of which the least noisy is dropped
(`intervals=True`). With karras the sigmas are exact and the time the network is told is the nearest integer.

Where diffusers' formulas leave the table we stay on it: leading with steps = T ignores the offset, trailing never makes
an extra point of floating-point dust, `intervals` with steps = T falls back to all T times, and one step of linspace
starts at T - 1.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from latent_diffusion.diffusion.level import CLEAN_TIME, Level, NoiseSchedule
from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import nearest

__all__ = ["SPACINGS", "Final", "Spacing", "levels", "times"]

Spacing = Literal["leading", "linspace", "trailing", "karras"]
SPACINGS: tuple[str, ...] = get_args(Spacing)

Final = Literal["zero", "first"]

KARRAS_RHO = 7.0
"""The paper's exponent (arXiv:2206.00364, table 1)."""


def levels(
    schedule: NoiseSchedule,
    spacing: str,
    steps: int,
    *,
    steps_offset: int = 0,
    final: Final = "zero",
    intervals: bool = False,
) -> list[Level]:
    """Return the steps + 1 levels a sampler visits, noisiest first, the last one being where it ends.

    Args:
        schedule: the noise law.
        spacing: "leading", "linspace", "trailing" or "karras".
        steps: number of network evaluations, 1 .. T.
        steps_offset: added to the times of "leading" (1 for Stable Diffusion 1 and 2).
        final: where to end. "zero" is the clean latent (diffusers: `set_alpha_to_one=True`,
            `final_sigmas_type="zero"`); "first" the least noisy level of the table (`set_alpha_to_one=False`,
            `final_sigmas_type="sigma_min"`).
        intervals: count points as diffusers' multistep solver does; hand over `sampler.intervals`.

    Raises:
        ConfigError: unknown spacing, steps outside 1 .. T, or karras where the last level has no signal.
    """
    if final not in get_args(Final):
        raise ConfigError(f"unknown final level {final!r}; there are zero, first")
    if spacing == "karras":
        visited = _karras(schedule, _checked(steps, schedule.num_train_timesteps))
    else:
        ts = times(spacing, steps, schedule.num_train_timesteps, steps_offset=steps_offset, intervals=intervals)
        visited = [schedule.level(t, index) for index, t in enumerate(ts)]
    return [*visited, schedule.level(CLEAN_TIME if final == "zero" else 0, steps)]


def times(
    spacing: str, steps: int, num_train_timesteps: int, *, steps_offset: int = 0, intervals: bool = False
) -> list[int]:
    """Return `steps` integer times within 0 .. T - 1, strictly falling. Arguments as for `levels`.

    Reference: Lin et al. 2023, arXiv:2305.08891, table 2.
    """
    if spacing not in _TIMES:
        raise ConfigError(f"unknown spacing {spacing!r}; there are {', '.join(SPACINGS)}{nearest(spacing, SPACINGS)}")
    total = num_train_timesteps
    points = min(_checked(steps, total) + intervals, total)
    rising = _TIMES[spacing](points, steps, total)
    if spacing == "leading":
        rising = rising + max(0, min(steps_offset, total - 1 - int(rising[-1])))
    return [int(t) for t in rising[::-1][:steps]]


def _checked(steps: int, total: int) -> int:
    if not 1 <= steps <= total:
        raise ConfigError(f"steps {steps} is out of range; use 1 to {total}, the levels the model was trained on")
    return steps


def _leading(points: int, steps: int, total: int) -> np.ndarray:
    return np.arange(points) * (total // points)


def _linspace(points: int, steps: int, total: int) -> np.ndarray:
    return np.linspace(0, total - 1, points).round() if points > 1 else np.array([total - 1])


def _trailing(points: int, steps: int, total: int) -> np.ndarray:
    return np.arange(total, 0, -total / steps)[:steps][::-1].round() - 1


_TIMES: dict[str, Callable[[int, int, int], np.ndarray]] = {
    "leading": _leading,
    "linspace": _linspace,
    "trailing": _trailing,
}


def _karras(schedule: NoiseSchedule, steps: int) -> list[Level]:
    """Levels of eq. 5 of arXiv:2206.00364, its sigma being our sigma / alpha."""
    noisiest, cleanest = schedule.level(schedule.num_train_timesteps - 1), schedule.level(0)
    if noisiest.alpha == 0.0:
        raise ConfigError("karras spacing needs a last level with some signal, not zero terminal SNR; use trailing")
    ends = [(level.sigma / level.alpha) ** (1.0 / KARRAS_RHO) for level in (noisiest, cleanest)]
    visited = []
    for index, share in enumerate(np.linspace(0.0, 1.0, steps).tolist()):
        ratio = (ends[0] + share * (ends[1] - ends[0])) ** KARRAS_RHO
        alpha = 1.0 / math.hypot(1.0, ratio)  # alpha^2 + sigma^2 = 1
        t = round(schedule.time_of(-2.0 * math.log(ratio)))
        visited.append(Level(index, float(t), alpha, ratio * alpha))
    return visited
