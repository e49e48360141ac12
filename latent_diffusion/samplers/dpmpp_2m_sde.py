"""DPM-Solver++(2M) SDE: the second-order multistep estimate carried along the noisy path.

    D = x0 + (h / (2 h_before)) (x0 - x0_before),     x_s = noisy path from x_t with D (`path.exponential`)

Reference: Lu et al. 2022, arXiv:2211.01095, section 5 with algorithm 2. The first step and the last one to the clean
latent are of first order. eta 0 is DPM-Solver++(2M).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor

from latent_diffusion.checks import check_number
from latent_diffusion.diffusion.level import Denoise, Level, Step
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.path import exponential, last_is_plain

__all__ = ["DPMpp2MSDE"]


@dataclass(frozen=True)
class DPMpp2MSDE:
    """Draws noise in every step but the last."""

    eta: float = 1.0  # share of the noise of the reverse process, 0 .. 1

    order: ClassVar[int] = 2
    intervals: ClassVar[bool] = True
    fractional: ClassVar[bool] = False
    aliases: ClassVar[tuple[str, ...]] = ("DPM++ 2M SDE", "dpmpp_2m_sde_gpu")
    automatic: ClassVar[str] = "exponential"
    ends_by: ClassVar[str] = "final_sigmas_type"
    schedulers: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "solver_order": 2},
    )

    def __post_init__(self) -> None:
        check_number("eta", self.eta, 1.0)

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step` per pair of levels; x (B, C, h, w) float32 is at levels[0]."""
        x0_before: Tensor | None = None
        h_before = 0.0
        for index, (level, after) in enumerate(pairwise(levels)):
            x0 = denoise(x, level)
            h = 0.5 * (after.log_snr - level.log_snr)
            estimate = x0
            plain = last_is_plain(index, levels)
            if x0_before is not None and not plain:
                estimate = x0 + (0.5 * h / h_before) * (x0 - x0_before)  # 0 after a step from pure noise
            x = exponential(x, estimate, level, after, self.eta, noise.draw)
            x0_before, h_before = x0, h
            yield Step(index, x, x0)
