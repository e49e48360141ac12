"""Muon for matrices, AdamW for all other weights: Jordan et al. 2024, "Muon: an optimizer for hidden layers".

Its updates are scaled to the size of AdamW's (Liu et al. 2025, arXiv:2502.16982, eq. 4), so both share a learning rate.
"""

import torch
from pydantic import Field

from latent_diffusion.training.optimizer import Groups, Joined, OptimizerSettings, check_betas

__all__ = ["Muon"]


class Muon(OptimizerSettings):
    """torch's Muon on weights of two dimensions; biases, norms and convolutions take AdamW."""

    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Decay of Muon's average of gradients."""
    betas: check_betas = (0.9, 0.999)
    """Decays of AdamW's averages."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW: added to the root of the squared gradient's average."""

    def build(self, groups: Groups) -> Joined:
        """Return both, each with its weights."""
        matrices, rest = [], []
        for group in groups:
            for chosen, wanted in ((matrices, True), (rest, False)):
                parameters = [p for p in group["params"] if (p.ndim == 2) == wanted]
                if parameters:
                    chosen.append({**group, "params": parameters})
        made: list[torch.optim.Optimizer] = []
        if matrices:
            rate = {"lr": self.learning_rate, "momentum": self.momentum, "adjust_lr_fn": "match_rms_adamw"}
            made.append(torch.optim.Muon(matrices, **rate))
        if rest:
            made.append(torch.optim.AdamW(rest, lr=self.learning_rate, betas=self.betas, eps=self.eps))
        return Joined(made)
