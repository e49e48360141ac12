"""DEIS: the noise as a polynomial in log r, integrated exactly over the step (tAB-DEIS in log r).

In exploding coordinates, r = sigma / alpha,

    z_s = z_t + sum_j c_j noise_j,     c_j = integral from r_t to r_s of prod_{k != j} log(r / r_k) / log(r_j / r_k) dr

Reference: Zhang & Chen 2023, arXiv:2204.13902, eq. 14 and 15 with log r as the variable of the polynomial (their
"rho" of section 4). One network evaluation a step. A level of pure noise has no log r: the step from it is of first
order, and later polynomials leave it out.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from numpy.polynomial import Polynomial
from torch import Tensor

from latent_diffusion.diffusion.level import Denoise, Level, Step
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.path import Coordinates, last_is_plain, towards, weighted_sum

__all__ = ["DEIS"]


@dataclass(frozen=True)
class DEIS:
    """Deterministic; never draws from `noise`."""

    order: ClassVar[int] = 2
    intervals: ClassVar[bool] = True
    fractional: ClassVar[bool] = False
    aliases: ClassVar[tuple[str, ...]] = ("DEIS", "DEISMultistep", "DEISMultistepScheduler")
    ends_by: ClassVar[str] = "final_sigmas_type"

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step` per pair of levels; x (B, C, h, w) float32 is at levels[0]."""
        exploding = Coordinates(straight=False)
        slopes: list[Tensor] = []  # newest first, as nodes
        nodes: list[float] = []
        for index, (level, after) in enumerate(pairwise(levels)):
            x0 = denoise(x, level)
            plain = last_is_plain(index, levels)
            if level.alpha == 0.0:
                x = towards(x, x0, level, after)
            else:
                slopes = [exploding.slope(x, x0, level), *slopes][: self.order]
                nodes = [-0.5 * level.log_snr, *nodes][: self.order]
                if plain or len(nodes) == 1:
                    x = towards(x, x0, level, after)
                else:
                    end = -0.5 * after.log_snr
                    total = math.expm1(end - nodes[0])  # (r_s - r_t) / r_t
                    weights = [area(nodes, place, end) / total for place in range(len(nodes))]
                    slope = weighted_sum(weights, slopes)
                    x = exploding.follow(x, slope, level, after)
            yield Step(index, x, x0)


def area(nodes: Sequence[float], place: int, end: float) -> float:
    """Integrate, over r from exp(nodes[0]) to exp(end) and in units of the start, the polynomial of one node."""
    basis = Polynomial([1.0])
    for other, node in enumerate(nodes):
        if other != place:
            basis *= Polynomial([nodes[0] - node, 1.0]) / (nodes[place] - node)
    # integral of p(y) exp(y) dy = (p - p' + p'' - ...) exp(y), y = log r - log r_t
    width, value, sign, term = end - nodes[0], 0.0, 1.0, basis
    while True:
        value += sign * (float(term(width)) * math.exp(width) - float(term(0.0)))
        if term.degree() == 0:
            return value
        sign, term = -sign, term.deriv()
