"""Prodigy, which finds the learning rate: Mishchenko & Defazio 2023, arXiv:2306.06101. Needs the package prodigyopt."""

import torch
from pydantic import Field

from latent_diffusion.training.optimizer import Groups, OptimizerSettings, check_betas, need_package

__all__ = ["Prodigy"]


class Prodigy(OptimizerSettings):
    """Adam with an estimated learning rate, which `learning_rate` multiplies."""

    state_bytes = 16
    one_rate = "prodigy estimates one learning rate for all weights from all their gradients"
    learning_rate: float = Field(default=1.0, gt=0)
    """Factor of the estimate; 1 is the method's own."""
    betas: check_betas = (0.9, 0.999)
    """Decays of the averages of gradient and squared gradient."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the squared gradient's average."""
    d_coef: float = Field(default=1.0, gt=0)
    """Factor of the estimate as it grows; 0.5 to 2."""
    bias_correction: bool = False
    """Correct the averages of the first updates, as Adam does."""
    safeguard_warmup: bool = False
    """Do not let a warm-up of the learning rate raise the estimate."""

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """Return prodigyopt's Prodigy."""
        package = need_package("prodigyopt", "prodigy")
        return package.Prodigy(
            groups,
            lr=self.learning_rate,
            betas=self.betas,
            eps=self.eps,
            d_coef=self.d_coef,
            use_bias_correction=self.bias_correction,
            safeguard_warmup=self.safeguard_warmup,
        )
