"""Square roots of beta in equal steps: the schedule of latent diffusion and Stable Diffusion.

Reference: Rombach et al. 2022, arXiv:2112.10752, appendix; constants of the Stable Diffusion 1 configuration.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from latent_diffusion.diffusion.discrete_vp import DiscreteVP, betas_named
from latent_diffusion.diffusion.scheduler_form import SchedulerForm

__all__ = ["ScaledLinearSchedule"]


@dataclass(frozen=True)
class ScaledLinearSchedule(DiscreteVP):
    """sqrt(beta) rises linearly from sqrt(`beta_start`) to sqrt(`beta_end`)."""

    beta_start: float = 0.00085  # variance added by the first step
    beta_end: float = 0.012  # variance added by the last step

    schedulers: ClassVar[tuple[SchedulerForm, ...]] = (betas_named("scaled_linear"),)

    def betas(self) -> np.ndarray:
        """Return the betas, float64 (T,)."""
        return np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_timesteps) ** 2
