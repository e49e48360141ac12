"""Betas in equal steps: the schedule of DDPM.

Reference: Ho et al. 2020, arXiv:2006.11239, section 4 (beta from 1e-4 to 0.02 over 1000 steps).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from latent_diffusion.diffusion.discrete_vp import DiscreteVP, betas_named
from latent_diffusion.diffusion.scheduler_form import SchedulerForm

__all__ = ["LinearSchedule"]


@dataclass(frozen=True)
class LinearSchedule(DiscreteVP):
    """beta rises linearly from `beta_start` to `beta_end`."""

    beta_start: float = 1e-4  # variance added by the first step
    beta_end: float = 0.02  # variance added by the last step

    schedulers: ClassVar[tuple[SchedulerForm, ...]] = (betas_named("linear"),)

    def betas(self) -> np.ndarray:
        """Return the betas, float64 (T,)."""
        return np.linspace(self.beta_start, self.beta_end, self.num_train_timesteps)
