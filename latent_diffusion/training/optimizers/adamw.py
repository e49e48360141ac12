"""AdamW: Loshchilov & Hutter 2019, "Decoupled weight decay regularization", arXiv:1711.05101."""

import torch
from pydantic import Field

from latent_diffusion.training.optimizer import Groups, OptimizerSettings, check_betas

__all__ = ["AdamW"]

FUSED = ("cpu", "cuda")
"""Devices whose AdamW updates all tensors in one kernel."""


class AdamW(OptimizerSettings):
    """AdamW in torch's fused form where the device has it."""

    betas: check_betas = (0.9, 0.999)
    """Decays of the averages of gradient and squared gradient."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the squared gradient's average."""

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """Return torch's AdamW."""
        fused = all(parameter.device.type in FUSED for group in groups for parameter in group["params"])
        return torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, eps=self.eps, fused=fused)
