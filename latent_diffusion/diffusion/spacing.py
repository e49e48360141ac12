"""Spacing: which noise levels a sampler visits.

Some spacings divide the training times (`time_spacing.py`), some the noise level (`sigma_spacing.py`), and the caller
may name times or sigmas of his own. Any goes with any sampler; what differs between samplers is a habit of their users:

    intervals    diffusers' multistep solvers divide the training times into `steps + 1` points and drop the least noisy
    fractional   k-diffusion's samplers visit times between the trained ones, diffusers' other samplers round

Where diffusers' formulas leave the table we stay on it: leading with steps = T ignores the offset, trailing never makes
an extra point of floating-point dust, `intervals` with steps = T falls back to all T times, and one step of linspace
starts at T - 1. With a spacing of the noise level alpha and sigma are exact, only the time told is rounded.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

from latent_diffusion.diffusion.level import CLEAN_TIME, Level, NoiseSchedule
from latent_diffusion.diffusion.path import Coordinates
from latent_diffusion.diffusion.sigma_spacing import (
    ALIGNED,
    ENDS_NOISY,
    FINITE_ONLY,
    RHO,
    SIGMA_SPACINGS,
    aligned_times,
)
from latent_diffusion.diffusion.time_spacing import TIME_SPACINGS
from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import nearest

__all__ = ["SPACINGS", "Final", "at_sigmas", "at_times", "levels", "times"]

SPACINGS: tuple[str, ...] = (*TIME_SPACINGS, *SIGMA_SPACINGS, *ALIGNED)

Final = Literal["zero", "first"]


def levels(
    schedule: NoiseSchedule,
    spacing: str,
    steps: int,
    *,
    steps_offset: int = 0,
    final: Final = "zero",
    intervals: bool = False,
    fractional: bool = False,
    rho: float | None = None,
    discard_next_to_last: bool = False,
) -> list[Level]:
    """Return the steps + 1 levels a sampler visits, noisiest first, the last one being where it ends.

    Args:
        schedule: the noise law.
        spacing: one of `SPACINGS`.
        steps: number of steps, 1 .. T.
        steps_offset: added to the times of "leading" (1 for Stable Diffusion 1 and 2).
        final: where to end. "zero" is the clean latent (diffusers: `set_alpha_to_one=True`,
            `final_sigmas_type="zero"`); "first" the least noisy level of the table (`set_alpha_to_one=False`,
            `final_sigmas_type="sigma_min"`).
        intervals: count points as diffusers' multistep solvers do; hand over `sampler.intervals`.
        fractional: visit times between the trained ones; hand over `sampler.fractional`. Always on a rectified flow.
        rho: exponent of "karras" (7) and "polyexponential" (1).
        discard_next_to_last: divide into steps + 1 and leave out the last level before the one to end in, as the A1111
            web UI does for DPM2, DPM2 a and DPM++ 3M SDE, and ComfyUI for dpm_2, dpm_2_ancestral and uni_pc.

    Raises:
        ConfigError: unknown spacing, steps outside 1 .. T, `rho` for another spacing or not above 0, or a spacing of
            sigma / alpha where the last level has no signal.
    """
    if final not in get_args(Final):
        raise ConfigError(f"unknown final level {final!r}; there are zero, first")
    total = schedule.num_train_timesteps
    if discard_next_to_last:
        if steps >= total:
            raise ConfigError(f"discard_next_to_last divides into one step more: use at most {total - 1} steps")
        how = {"steps_offset": steps_offset, "final": final, "fractional": fractional, "rho": rho}
        *visited, _, end = levels(schedule, spacing, steps + 1, **how)
        return [*visited, replace(end, index=steps)]
    if rho is not None and (spacing not in RHO or not 0.0 < rho < math.inf):
        raise ConfigError(f"rho {rho} with {spacing} spacing: only {', '.join(RHO)} have a rho, a number above 0")
    fractional = fractional or _coordinates(schedule).straight
    if spacing in SIGMA_SPACINGS:
        visited = _by_sigma(schedule, spacing, _checked(steps, total), RHO.get(spacing, 1.0) if rho is None else rho)
    elif spacing in ALIGNED:
        visited = at_times(schedule, aligned_times(schedule, spacing, _checked(steps, total)))
    else:
        ts = times(spacing, steps, total, steps_offset=steps_offset, intervals=intervals, fractional=fractional)
        visited = at_times(schedule, ts)
    if not fractional:
        visited = [replace(level, t=float(round(level.t))) for level in visited]
    if spacing in ENDS_NOISY:
        final = "first"
    return [*visited, schedule.level(CLEAN_TIME if final == "zero" else 0, steps)]


def times(
    spacing: str,
    steps: int,
    num_train_timesteps: int,
    *,
    steps_offset: int = 0,
    intervals: bool = False,
    fractional: bool = False,
) -> list[int] | list[float]:
    """Return `steps` times within 0 .. T - 1, strictly falling, integers unless `fractional`; arguments as in `levels`.

    Reference: Lin et al. 2023, arXiv:2305.08891, table 2.
    """
    if spacing not in TIME_SPACINGS:
        raise ConfigError(f"unknown spacing {spacing!r}; there are {', '.join(SPACINGS)}{nearest(spacing, SPACINGS)}")
    total = num_train_timesteps
    points = min(_checked(steps, total) + intervals, total)
    rising = TIME_SPACINGS[spacing](points, steps, total)
    if spacing == "leading":
        rising = rising + max(0, min(steps_offset, total - 1 - int(rising[-1])))
    falling = rising[::-1][:steps]
    return falling.tolist() if fractional else _strictly_falling(falling.round(), total)


def at_times(schedule: NoiseSchedule, ts: Sequence[float]) -> list[Level]:
    """Return the levels at times `ts`, without the one to end in.

    Raises:
        ConfigError: `ts` are not strictly falling numbers from T - 1 to 0.
    """
    last = schedule.num_train_timesteps - 1
    _check_falling("timesteps", ts, 0.0, float(last))
    return [schedule.level(t, index) for index, t in enumerate(ts)]


def at_sigmas(schedule: NoiseSchedule, sigmas: Sequence[float]) -> list[Level]:
    """Return the levels at noise levels sigma / alpha (sigma on a rectified flow), without the one to end in.

    Raises:
        ConfigError: `sigmas` are not strictly falling numbers above 0 (and up to 1 on a rectified flow).
    """
    coordinates = _coordinates(schedule)
    _check_falling("sigmas", sigmas, 1e-6, 1.0 if coordinates.straight else 1e6)
    return [schedule.level_at(coordinates.log_snr(float(u)), index) for index, u in enumerate(sigmas)]


def _by_sigma(schedule: NoiseSchedule, spacing: str, steps: int, rho: float) -> list[Level]:
    noisiest, cleanest = schedule.level(schedule.num_train_timesteps - 1), schedule.level(0)
    coordinates = _coordinates(schedule)
    if noisiest.alpha == 0.0 and not coordinates.straight and spacing in FINITE_ONLY:
        raise ConfigError(
            f"{spacing} spacing needs a last level with some signal, not zero terminal SNR; use trailing or kl_optimal"
        )
    most = math.inf if coordinates.scale(noisiest) == 0.0 else coordinates.u(noisiest)
    sigmas = SIGMA_SPACINGS[spacing](np.linspace(0.0, 1.0, steps), most, coordinates.u(cleanest), rho)
    rest = [schedule.level_at(coordinates.log_snr(u), index) for index, u in enumerate(sigmas.tolist()) if index]
    return [noisiest, *rest]


def _coordinates(schedule: NoiseSchedule) -> Coordinates:
    """In which this law's users count its noise level."""
    return Coordinates.of(schedule.level(0))


def _strictly_falling(rounded: np.ndarray, total: int) -> list[int]:
    """Part times that rounding made equal: down from the noisy end, and up again where that would leave the table."""
    falling = rounded.astype(int).tolist()
    for place in range(1, len(falling)):
        falling[place] = min(falling[place], falling[place - 1] - 1)
    return [max(t, len(falling) - 1 - place) for place, t in enumerate(falling)]


def _checked(steps: int, total: int) -> int:
    if not 1 <= steps <= total:
        raise ConfigError(f"steps {steps} is out of range; use 1 to {total}, the levels the model was trained on")
    return steps


def _check_falling(what: str, values: Sequence[float], least: float, most: float) -> None:
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and least <= v <= most]
    if not values or len(numbers) != len(values) or any(a <= b for a, b in pairwise(values)):
        raise ConfigError(f"{what} {list(values)[:20]} must be numbers strictly falling within {most:g} to {least:g}")
