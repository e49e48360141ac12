"""Linear multistep: the polynomial through the last slopes, integrated exactly over the step.

    z_s = z_t + sum_j c_j d_j,     c_j = integral from u_t to u_s of prod_{k != j} (u - u_k) / (u_j - u_k) du

Reference: the variable-step Adams-Bashforth method (Hairer, Norsett & Wanner, "Solving ODEs I", section III.5), on the
flow of Karras et al. 2022, arXiv:2206.00364, eq. 3. One network evaluation a step. The last step, to the clean latent,
is Euler's and ends on x0 itself, where k-diffusion extrapolates past the last estimate.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from numpy.polynomial import Polynomial
from torch import Tensor

from latent_diffusion.diffusion.level import Denoise, Level, Step
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.path import Coordinates, towards, weighted_sum

__all__ = ["LMS"]

SLOPES = 4
"""How many slopes are used at most."""


@dataclass(frozen=True)
class LMS:
    """Deterministic; never draws from `noise`."""

    order: ClassVar[int] = 2  # the first step, of first order, decides in the end; the later ones are of order 4
    intervals: ClassVar[bool] = False
    fractional: ClassVar[bool] = True
    aliases: ClassVar[tuple[str, ...]] = ("LMS", "k_lms", "LMSDiscrete", "LMSDiscreteScheduler")

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step` per pair of levels; x (B, C, h, w) float32 is at levels[0]."""
        coordinates = Coordinates.of(levels[0])
        slopes: list[Tensor] = []  # newest first, as nodes
        nodes: list[float] = []
        for index, (level, after) in enumerate(pairwise(levels)):
            x0 = denoise(x, level)
            if after.sigma == 0.0:
                yield Step(index, towards(x, x0, level, after), x0)
                return
            start, end = coordinates.u(level), coordinates.u(after)
            slopes = [coordinates.slope(x, x0, level), *slopes][:SLOPES]
            nodes = [start, *nodes][:SLOPES]
            weights = [area(nodes, place, start, end) / (end - start) for place in range(len(nodes))]
            slope = weighted_sum(weights, slopes)
            x = coordinates.follow(x, slope, level, after)
            yield Step(index, x, x0)


def area(nodes: Sequence[float], place: int, start: float, end: float) -> float:
    """Integrate over start .. end the polynomial that is 1 at nodes[place] and 0 at the others."""
    width = end - start
    basis = Polynomial([1.0])
    for other, node in enumerate(nodes):
        if other != place:  # in units of the step from its start, where the coefficients are of size 1
            basis *= Polynomial([start - node, width]) / (nodes[place] - node)
    return float(width * basis.integ()(1.0))
