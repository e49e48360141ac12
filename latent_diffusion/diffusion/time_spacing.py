"""Spacings that divide the training times 0 .. T - 1.

    leading       multiples of T // steps, plus `steps_offset`; never reaches the last training time
    linspace      equal parts of 0 .. T - 1, both ends included
    trailing      from T - 1 down in equal parts of T; the choice for zero terminal SNR
    sgm_uniform   from T - 1 down in equal parts of T - 1, the end left out (ComfyUI, A1111)
    simple        every (T / steps)-th time counted from T - 1 (ComfyUI, A1111)
    ddim_uniform  1, 1 + s, 1 + 2 s ... with a whole stride s (ComfyUI, A1111)
    lcm           evenly chosen from the 50 times, T / 50 apart, that latent consistency models are distilled at
    beta          T - 1 times quantiles of Beta(0.6, 0.6): dense at both ends (Lee et al. 2024, arXiv:2407.12173)

The first three are table 2 of Lin et al. 2023, arXiv:2305.08891, with the rounding of diffusers.
"""

from collections.abc import Callable

import numpy as np

from latent_diffusion.diffusion.beta_quantile import beta_quantiles

__all__ = ["BETA", "TIME_SPACINGS", "TimeSpacing", "ddim_uniform_times"]

BETA = 0.6
"""Both shape parameters (arXiv:2407.12173, section 4)."""

LCM_TIMES = 50
"""Number of times that latent consistency models are distilled at (arXiv:2310.04378, section 4.3; diffusers)."""

TimeSpacing = Callable[[int, int, int], np.ndarray]
"""(points, steps, T) -> rising times, float64, of which the last `steps` are visited; points is steps or steps + 1."""


def _leading(points: int, steps: int, total: int) -> np.ndarray:
    return np.arange(points) * float(total // points)


def _linspace(points: int, steps: int, total: int) -> np.ndarray:
    return np.linspace(0.0, total - 1.0, points) if points > 1 else np.array([total - 1.0])


def _trailing(points: int, steps: int, total: int) -> np.ndarray:
    return np.arange(total, 0, -total / steps)[:steps][::-1].round() - 1.0


def _sgm_uniform(points: int, steps: int, total: int) -> np.ndarray:
    return np.linspace(0.0, total - 1.0, steps + 1)[1:]


def _simple(points: int, steps: int, total: int) -> np.ndarray:
    return total - 1.0 - np.floor(np.arange(steps)[::-1] * (total / steps))


def _beta(points: int, steps: int, total: int) -> np.ndarray:
    shares = 1.0 - np.arange(steps)[::-1] / steps
    return (total - 1.0) * beta_quantiles(shares, BETA, BETA)


def _ddim_uniform(points: int, steps: int, total: int) -> np.ndarray:
    if steps == total:
        return np.arange(float(total))
    for asked in (steps, *range(1, total + 1)):  # the number that ComfyUI would be asked for
        if len(found := ddim_uniform_times(asked, total)) == steps:
            return np.array(found[::-1], dtype=float)
    return 1.0 + np.arange(steps) * ((total - 1) / steps)


def ddim_uniform_times(asked: int, total: int) -> list[int]:
    """Return the times, falling, that ComfyUI and A1111 visit where `asked` steps are asked for: 31 times for 30.

    Two numbers can give equally many times, as 19 and 20 do; the spacing takes those of the number itself, then those
    of the least. Others are visited as `timesteps` of one's own.
    """
    return list(range(1, total, max(total // asked, 1)))[::-1]


def _lcm(points: int, steps: int, total: int) -> np.ndarray:
    trained = min(total, max(LCM_TIMES, steps))
    chosen = np.floor(np.linspace(0, trained, steps, endpoint=False))
    return (total - 1.0 - (total // trained) * chosen)[::-1]


TIME_SPACINGS: dict[str, TimeSpacing] = {
    "leading": _leading,
    "linspace": _linspace,
    "trailing": _trailing,
    "sgm_uniform": _sgm_uniform,
    "simple": _simple,
    "beta": _beta,
    "lcm": _lcm,
    "ddim_uniform": _ddim_uniform,
}
