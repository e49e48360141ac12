"""Any denoiser as a rectified flow, and how straight its paths are.

On the line z = (1 - u) x0 + u noise a path moves with the velocity

    dz / du = noise - x0 = (z - x0(z, u)) / u,      z = x / (alpha + sigma),  u = sigma / (alpha + sigma)

so every network that predicts noise, x0 or v is a flow as it stands: its weights stay, its output is expressed anew. On
a variance-preserving law with some signal at its noisiest level the line starts at u < 1.

A flow is straight where the velocity does not change on the way: one step of Euler is then exact. The measure is

    S = mean over u of |dz / du - chord|^2,     chord = mean over u of dz / du = (z_start - z_end) / u_start

Reference: Liu et al. 2023, arXiv:2209.03003, eq. 1 and section 2.2 (S); a noise law as a line: Karras et al. 2022,
arXiv:2206.00364, eq. 1 in the coordinates of `path.py`.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from latent_diffusion.diffusion.level import Denoise, Level, NoiseSchedule
from latent_diffusion.diffusion.path import Coordinates, towards

__all__ = ["as_flow", "far_end", "straightness"]

STRAIGHT = Coordinates(straight=True)


def as_flow(denoise: Denoise, schedule: NoiseSchedule) -> Callable[[Tensor, float], Tensor]:
    """Return the velocity (z (B, C, h, w), u in 0 .. 1) -> dz / du of a denoiser on any noise law; u > 0."""

    def velocity(z: Tensor, u: float) -> Tensor:
        level = schedule.level_at(STRAIGHT.log_snr(u))
        x = STRAIGHT.scale(level) * z
        return STRAIGHT.slope(x, denoise(x, level), level)

    return velocity


def straightness(denoise: Denoise, x: Tensor, levels: Sequence[Level]) -> Tensor:
    """Return S of the paths that start at x, (B,), a mean over the values of a picture; 0 is straight.

    Args:
        denoise: (x, level) -> x0.
        x: (B, C, h, w) at levels[0].
        levels: a fine grid from noise to the clean level; the path is followed by one step of Euler between two.
    """
    first = torch.zeros_like(x)
    second = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    total = STRAIGHT.u(levels[0]) - STRAIGHT.u(levels[-1])
    for level, after in pairwise(levels):
        x0 = denoise(x, level)
        slope, share = STRAIGHT.slope(x, x0, level), (STRAIGHT.u(level) - STRAIGHT.u(after)) / total
        first = first + share * slope
        second = second + share * slope.square().flatten(1).mean(1)
        x = towards(x, x0, level, after)
    return second - first.square().flatten(1).mean(1)


def far_end(x0: Tensor, start: Tensor, last: Level) -> Tensor:
    """Return the noise (B, C, h, w) with which the line of x0 is at `start` at the noisiest level `last`.

    alpha x0 + sigma noise = start there: `start` itself where the level has no signal.
    """
    return (start - last.alpha * x0) / last.sigma
