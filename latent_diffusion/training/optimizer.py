"""AdamW over one player's weights, the learning-rate curve, and the norm of gradients.

The curve is a pure function of the update number, so it needs no state and does not depend on the number of
processes.

Reference: Loshchilov & Hutter 2019, "Decoupled weight decay regularization", arXiv:1711.05101.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from latent_diffusion.config import OptimizerConfig, RunConfig
from latent_diffusion.training.objective import Player

__all__ = ["build_optimizer", "gradient_norm", "learning_rate", "scale_gradients"]

_FUSED = ("cpu", "cuda")
"""Devices whose AdamW updates all tensors in one kernel."""


def build_optimizer(player: Player, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; tensors of fewer than two dimensions are not decayed.

    A group's `share` is its learning rate over that of the run, which the curve moves.
    """
    named = {name: p for name, p in player.named_parameters() if p.requires_grad}
    rates = player.learning_rates()
    groups = []
    for rate in dict.fromkeys(rates.get(name, config.learning_rate) for name in named):
        of_rate = [p for name, p in named.items() if rates.get(name, config.learning_rate) == rate]
        decayed, plain = [p for p in of_rate if p.ndim >= 2], [p for p in of_rate if p.ndim < 2]
        share = rate / config.learning_rate
        groups += [{"params": decayed, "weight_decay": config.weight_decay, "share": share}] if decayed else []
        groups += [{"params": plain, "weight_decay": 0.0, "share": share}] if plain else []
    fused = all(p.device.type in _FUSED for p in named.values())
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
