"""AdamW over one player's weights, the learning-rate curve, and the norm of gradients.

The curve is a pure function of the update number, so it needs no state and does not depend on the number of
processes.

Reference: Loshchilov & Hutter 2019, "Decoupled weight decay regularization", arXiv:1711.05101.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latent_diffusion.config import OptimizerConfig, RunConfig

__all__ = ["build_optimizer", "gradient_norm", "learning_rate", "scale_gradients"]

_FUSED = ("cpu", "cuda")
"""Devices whose AdamW updates all tensors in one kernel."""


def build_optimizer(player: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; tensors of fewer than two dimensions are not decayed."""
    parameters = [p for p in player.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = all(p.device.type in _FUSED for p in parameters)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=fused)


def learning_rate(step: int, run: RunConfig) -> float:
    """Return the learning rate of update `step` (from 0): linear warm-up, then constant, cosine or linear to zero."""
    peak = run.optimizer.learning_rate
    if step < run.warmup:
        return peak * (step + 1) / run.warmup
    if run.decay == "constant":
        return peak
    progress = min(1.0, (step - run.warmup) / max(1, run.steps - run.warmup))
    if run.decay == "linear":
        return peak * (1 - progress)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def gradient_norm(parameters: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm over all gradients, () on the device; NaN or infinite when any of them is."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def scale_gradients(parameters: Sequence[Tensor], norm: float, limit: float) -> None:
    """Scale the gradients in place so that their norm, now `norm`, is at most `limit`."""
    if norm > limit:
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], limit / (norm + 1e-12))
