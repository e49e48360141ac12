"""Schedule-free AdamW: Defazio et al. 2024, arXiv:2405.15682. Needs the package schedulefree.

It trains at a point between the weights and their average; the average is what is saved for use, sampled and exported.
"""

import torch
from pydantic import Field

from latent_diffusion.training.optimizer import Groups, OptimizerSettings, check_betas, need_package

__all__ = ["ScheduleFree"]


class ScheduleFree(OptimizerSettings):
    """AdamW without a learning-rate curve; use decay: constant."""

    betas: check_betas = (0.9, 0.999)
    """Share of the average in the point of training, and decay of the squared gradient's average."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the squared gradient's average."""

    constant_only = True

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """Return schedulefree's AdamWScheduleFree, in its mode of training."""
        package = need_package("schedulefree", "schedule_free")
        made = package.AdamWScheduleFree(groups, lr=self.learning_rate, betas=self.betas, eps=self.eps)
        made.train()
        return made
