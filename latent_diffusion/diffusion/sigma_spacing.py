"""Spacings that divide the noise level: sigma / alpha, or sigma itself on a rectified flow.

With s falling from s_max at T - 1 to s_min at 0, and p from 0 to 1 in equal parts,

    karras           (s_max^(1/rho) + p (s_min^(1/rho) - s_max^(1/rho)))^rho, rho 7: arXiv:2206.00364, eq. 5
    exponential      log s in equal parts
    polyexponential  log s = log s_min + (1 - p)^rho log(s_max / s_min), rho 1 (then it is exponential)
    beta_sigma       s_min + (s_max - s_min) times quantiles of Beta(0.6, 0.6): "beta" of diffusers and Forge
    kl_optimal       atan s in equal parts: Sabour et al. 2024, arXiv:2404.14507, theorem 3.1
    ays_sd1          "Align Your Steps", optimised for Stable Diffusion 1 and 10 steps, log s interpolated for others
    ays_sdxl         the same for SDXL (both arXiv:2404.14507, section 4)

"kl_optimal", "ays_sd1" and "ays_sdxl" stop one part before s_min and then go to the clean level, as in ComfyUI. The
A1111 web UI's end elsewhere: "ays_sd1_a1111" and "ays_sdxl_a1111" visit s_min too, and "kl_optimal_a1111" ends there,
with no step to the clean level (modules/sd_schedulers.py).

The first four have no place for s_max = infinity, which is zero terminal SNR on a variance-preserving law.
"""

import math
from collections.abc import Callable

import numpy as np

from latent_diffusion.diffusion.beta_quantile import beta_quantiles
from latent_diffusion.diffusion.level import NoiseSchedule
from latent_diffusion.diffusion.time_spacing import BETA

__all__ = ["ALIGNED", "ENDS_NOISY", "FINITE_ONLY", "RHO", "SIGMA_SPACINGS", "aligned_times"]

RHO = {"karras": 7.0, "polyexponential": 1.0}
"""Exponents the users know (arXiv:2206.00364, table 1; k-diffusion), where the caller names none."""

FINITE_ONLY = ("karras", "exponential", "polyexponential", "beta_sigma")

A1111 = "_a1111"
"""Ending of the names of spacings that end as the A1111 web UI's do."""

ALIGNED = {
    "ays_sd1": (999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0),
    "ays_sdxl": (999, 845, 730, 587, 443, 310, 193, 116, 53, 13, 0),
}
"""Times of a model with T = 1000; the last one only bounds the interpolation."""
ALIGNED |= {f"{name}{A1111}": nodes for name, nodes in ALIGNED.items()}
ENDS_NOISY = (f"kl_optimal{A1111}",)
"""Spacings whose last level is the law's least noisy one, whatever the folder says."""


def _karras(shares: np.ndarray, most: float, least: float, rho: float) -> np.ndarray:
    ends = [end ** (1.0 / rho) for end in (most, least)]
    return (ends[0] + shares * (ends[1] - ends[0])) ** rho


def _exponential(shares: np.ndarray, most: float, least: float, rho: float) -> np.ndarray:
    return np.exp(math.log(most) + shares * math.log(least / most))


def _polyexponential(shares: np.ndarray, most: float, least: float, rho: float) -> np.ndarray:
    return np.exp(math.log(least) + (1.0 - shares) ** rho * math.log(most / least))


def _beta_sigma(shares: np.ndarray, most: float, least: float, rho: float) -> np.ndarray:
    return least + beta_quantiles(1.0 - shares, BETA, BETA) * (most - least)


def _kl_optimal(shares: np.ndarray, most: float, least: float, rho: float) -> np.ndarray:
    return np.tan((1.0 - shares) * math.atan(most) + shares * math.atan(least))


def _kl_optimal_a1111(shares: np.ndarray, most: float, least: float, rho: float) -> np.ndarray:
    return _kl_optimal(np.arange(len(shares)) / len(shares), most, least, rho)


SIGMA_SPACINGS: dict[str, Callable[[np.ndarray, float, float, float], np.ndarray]] = {
    "karras": _karras,
    "exponential": _exponential,
    "polyexponential": _polyexponential,
    "beta_sigma": _beta_sigma,
    "kl_optimal": _kl_optimal,
    "kl_optimal_a1111": _kl_optimal_a1111,
}
"""name -> (shares p (steps,), s_max, s_min, rho) -> falling noise levels (steps,)."""


def aligned_times(schedule: NoiseSchedule, spacing: str, steps: int) -> list[float]:
    """Return the times of a spacing of `ALIGNED` for any number of steps, falling.

    Between the published ones log sigma / alpha is interpolated, as the authors do; pure noise has none, and then the
    times are.
    """
    stretch = (schedule.num_train_timesteps - 1) / ALIGNED[spacing][0]
    nodes = np.array([stretch * t for t in ALIGNED[spacing]])
    to_the_end = spacing.endswith(A1111)
    places = np.linspace(0.0, len(nodes) - 1.0, steps + (not to_the_end))[:steps]
    values = np.array([schedule.level(t).log_snr for t in nodes.tolist()])
    if not np.isfinite(values).all():
        return np.interp(places, np.arange(len(nodes)), nodes).tolist()
    between = np.interp(places, np.arange(len(nodes)), values)
    return [schedule.time_of(value) for value in between.tolist()]
