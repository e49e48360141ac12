"""alpha_bar as a squared cosine of time.

    alpha_bar(u) = cos((u + s) / (1 + s) * pi / 2)^2,   beta[t] = min(1 - alpha_bar(t + 1) / alpha_bar(t), 0.999)

Reference: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17 and the text below it.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from latent_diffusion.diffusion.discrete_vp import DiscreteVP, betas_named
from latent_diffusion.diffusion.scheduler_form import SchedulerForm

__all__ = ["CosineSchedule"]

OFFSET = 0.008
"""s: keeps beta from vanishing at the first step."""

MAX_BETA = 0.999
"""The paper's clip, which prevents a singularity at the last step."""


@dataclass(frozen=True)
class CosineSchedule(DiscreteVP):
    """alpha_bar falls as a squared cosine (diffusers: `squaredcos_cap_v2`)."""

    schedulers: ClassVar[tuple[SchedulerForm, ...]] = (betas_named("squaredcos_cap_v2"),)

    def betas(self) -> np.ndarray:
        """Return the betas, float64 (T,)."""
        u = np.arange(self.num_train_timesteps + 1) / self.num_train_timesteps
        alpha_bar = np.cos((u + OFFSET) / (1.0 + OFFSET) * np.pi / 2.0) ** 2
        return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], MAX_BETA)
