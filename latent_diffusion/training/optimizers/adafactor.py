"""Adafactor: Shazeer & Stern 2018, arXiv:1804.04235; one average a row and one a column in place of one a weight."""

import torch
from pydantic import Field

from latent_diffusion.training.optimizer import Groups, OptimizerSettings

__all__ = ["Adafactor"]


class Adafactor(OptimizerSettings):
    """torch's Adafactor: next to no memory beside weights and gradients."""

    state_bytes = 0
    beta2_decay: float = Field(default=-0.8, lt=0)
    """Exponent by which the decay of the squared gradient's average approaches 1."""
    clip: float = Field(default=1.0, ge=1)
    """Largest root mean square of an update (d in the paper)."""

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """Return torch's Adafactor."""
        return torch.optim.Adafactor(groups, lr=self.learning_rate, beta2_decay=self.beta2_decay, d=self.clip)
