"""AdamW with averages kept in 8 bits: Dettmers et al. 2022, arXiv:2110.02861. Needs the package bitsandbytes."""

import torch
from pydantic import Field

from latent_diffusion.training.optimizer import Groups, OptimizerSettings, check_betas, need_package

__all__ = ["AdamW8bit"]


class AdamW8bit(OptimizerSettings):
    """AdamW whose two averages take a quarter of the memory; tensors below 4,096 values stay in float32."""

    state_bytes = 2
    betas: check_betas = (0.9, 0.999)
    """Decays of the averages of gradient and squared gradient."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the squared gradient's average."""

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """Return bitsandbytes' AdamW8bit."""
        package = need_package("bitsandbytes", "adamw8bit")
        return package.optim.AdamW8bit(groups, lr=self.learning_rate, betas=self.betas, eps=self.eps)
