"""DPM-Solver++(3M) SDE: a parabola through the last three estimates carried along the noisy path.

With h the step in half-log-SNR, H = (1 + eta) h, and D1, D2 the first two divided differences of x0 in units of h,

    x_s = noisy path from x_t with x0 + alpha_s (phi_2 D1 - phi_3 D2),
    phi_2 = (exp(-H) - 1) / H + 1,   phi_3 = phi_2 / H - 1/2

phi_2 and phi_3 vanish with h. The second step is that of DPM-Solver++(2M) SDE; the first and the last one to the clean
latent are of first order.

Reference: Lu et al. 2022, arXiv:2211.01095, section 5 (noisy path); arXiv:2206.00927, appendix B.3 (differences).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor

from latent_diffusion.checks import check_number
from latent_diffusion.diffusion.level import Denoise, Level, Step
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.path import FEW_STEPS, exponential

__all__ = ["DPMpp3MSDE"]


@dataclass(frozen=True)
class DPMpp3MSDE:
    """Draws noise in every step but the last."""

    eta: float = 1.0  # share of the noise of the reverse process, 0 .. 1

    order: ClassVar[int] = 2  # the first step, of first order, decides; the later ones are of order 3
    intervals: ClassVar[bool] = True
    fractional: ClassVar[bool] = False
    aliases: ClassVar[tuple[str, ...]] = ("DPM++ 3M SDE", "dpmpp_3m_sde_gpu")
    automatic: ClassVar[str] = "exponential"
    ends_by: ClassVar[str] = "final_sigmas_type"
    schedulers: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "solver_order": 3},
        {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++", "solver_order": 3, "eta": 0.0},
    )

    def __post_init__(self) -> None:
        check_number("eta", self.eta, 1.0)

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step` per pair of levels; x (B, C, h, w) float32 is at levels[0]."""
        estimates: list[Tensor] = []  # newest first
        widths: list[float] = []  # h of the steps between them, newest first
        count = len(levels) - 1
        for index, (level, after) in enumerate(pairwise(levels)):
            x0 = denoise(x, level)
            estimates = [x0, *estimates][:3]
            h = 0.5 * (after.log_snr - level.log_snr)
            usable = min(len(estimates), count - index if count < FEW_STEPS else 3)
            if after.sigma == 0.0 or usable == 1:
                x = exponential(x, x0, level, after, self.eta, noise.draw)
            elif usable == 2:
                estimate = x0 + (0.5 * h / widths[0]) * (x0 - estimates[1])
                x = exponential(x, estimate, level, after, self.eta, noise.draw)
            else:
                bend = after.alpha * _bend(estimates, widths, h, (1.0 + self.eta) * h)
                x = exponential(x, x0, level, after, self.eta, noise.draw) + bend
            widths = [h, *widths][:2]
            yield Step(index, x, x0)


def _bend(estimates: Sequence[Tensor], widths: Sequence[float], h: float, stretched: float) -> Tensor:
    """Return phi_2 D1 - phi_3 D2; a width is infinite after a step from pure noise, and its difference then 0."""
    ratio_0, ratio_1 = widths[0] / h, widths[1] / h
    slope_0 = (estimates[0] - estimates[1]) / ratio_0
    slope_1 = (estimates[1] - estimates[2]) / ratio_1
    curve = (slope_0 - slope_1) / (ratio_0 + ratio_1)
    phi_2 = math.expm1(-stretched) / stretched + 1.0
    phi_3 = phi_2 / stretched - 0.5
    return phi_2 * (slope_0 + ratio_0 * curve) - phi_3 * curve
