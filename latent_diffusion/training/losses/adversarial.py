"""The hinge game between autoencoder and discriminator, and the weight that balances it.

Reference: Lim & Ye 2017, arXiv:1705.02894 (hinge loss); Esser et al. 2021, arXiv:2012.09841, eq. (7) (adaptive weight);
Karras et al. 2018, arXiv:1710.10196, appendix A.1 (drift).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["adaptive_weight", "discriminator_loss", "generator_loss"]

DRIFT = 1e-3  # holds the logits' mean, which the hinge leaves free as long as both kinds lie within its margin
EPSILON = 1e-4  # in eq. (7); relative to the gradient of one picture


def generator_loss(logits: Tensor) -> Tensor:
    """Return how little each made picture convinces, (B,), from its patch logits (B, 1, h, w)."""
    return -logits.flatten(1).mean(1)


def discriminator_loss(real: Tensor, made: Tensor) -> Tensor:
    """Return the hinge loss of each pair, with drift, (B,), from the logits (B, 1, h, w) of real and made pictures."""
    hinge = 0.5 * (F.relu(1 - real) + F.relu(1 + made))
    return (hinge + DRIFT * real.square()).flatten(1).mean(1)


def adaptive_weight(
    reconstruction: Tensor,
    adversarial: Tensor,
    last_layer: nn.Parameter,
    sum_over_processes: Callable[[Tensor], Tensor],
    *,
    largest: float,
) -> Tensor:
    """Return |grad of reconstruction| / |grad of adversarial| at the decoder's last layer, a scalar without graph.

    The gradients are summed over all processes before their norms are taken: a norm of each process's own share would
    change with the number of processes.

    Args:
        reconstruction: (B,) losses of this process's pictures.
        adversarial: (B,) losses of the same pictures.
        last_layer: weight of the decoder's last convolution.
        sum_over_processes: adds a tensor up over the processes.
        largest: the weight is clamped to 0 .. largest.
    """
    gradients = [
        torch.autograd.grad(loss.sum(), last_layer, retain_graph=True)[0].float()
        for loss in (reconstruction, adversarial)
    ]
    count = gradients[0].new_tensor([float(len(reconstruction))])
    total = sum_over_processes(torch.cat([*(g.flatten() for g in gradients), count]))
    first, second = total[:-1].view(2, -1).norm(dim=1) / total[-1]
    return (first / (second + EPSILON)).clamp(0.0, largest).detach()
