"""Changes that multiply a weight (O, I * k * k) in place of adding to it: (IA)3 and OFT, as PEFT writes them.

(IA)3  diag(l) W, or W diag(l) where the inputs are scaled   Liu et al. 2022, arXiv:2205.05638, section 3.3
OFT    W R^T, R orthogonal in blocks                         Qiu et al. 2023, arXiv:2306.07280, section 3.2
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latent_diffusion.errors import CheckpointError

__all__ = ["Rotated", "Scaled", "rotated", "scaled"]


@dataclass(frozen=True)
class Scaled:
    """(IA)3: each output, or each input, times a learned number."""

    shape: tuple[int, int]
    factors: Tensor  # (O,), or (I,) where `by_input`
    by_input: bool

    def matrix(self, weight: Tensor) -> Tensor:
        """Return (factors - 1) * weight."""
        less = self.factors.to(weight.device, torch.float32) - 1
        if not self.by_input:
            return less[:, None] * weight
        return (weight.unflatten(1, (len(less), -1)) * less[:, None]).flatten(1)


@dataclass(frozen=True)
class Rotated:
    """OFT: the inputs are rotated by a block-diagonal orthogonal matrix before W."""

    shape: tuple[int, int]
    entries: Tensor  # (r, b * (b - 1) / 2): above the diagonal of each skew-symmetric Q; r = 1: one for all blocks
    terms: int | None  # of the series for R; None = Cayley's transform itself

    def matrix(self, weight: Tensor) -> Tensor:
        """Return weight @ blockdiag(R).T - weight."""
        turn = self._blocks(weight.device)
        parts = weight.unflatten(1, (-1, turn.shape[-1]))
        turn = turn.expand(parts.shape[1], -1, -1)
        return torch.einsum("rkc,orc->ork", turn, parts).flatten(1) - weight

    def _blocks(self, device: torch.device) -> Tensor:
        """Return R (r, b, b): (I - Q) (I + Q)^-1, or PEFT's series I + 2 Q + 2 Q^2 + ... + Q^(terms - 1)."""
        entries = self.entries.to(device, torch.float32)
        size = block_size(entries)
        above = torch.zeros(len(entries), size, size, device=device)
        rows, columns = torch.triu_indices(size, size, 1)
        above[:, rows, columns] = entries
        skew, one = above - above.mT, torch.eye(size, device=device)
        if self.terms is None:
            return torch.linalg.solve(one + skew, one - skew, left=False)
        total, power = one.repeat(len(entries), 1, 1), skew
        last = self.terms if self.terms != 3 else 4  # PEFT's sum of three terms has four
        for number in range(1, last):
            total = total + (1 if number == last - 1 and last > 2 else 2) * power
            power = power @ skew
        return total


def block_size(entries: Tensor) -> int:
    """Return b for b * (b - 1) / 2 entries."""
    return (1 + math.isqrt(1 + 8 * entries.shape[1])) // 2


def scaled(factors: Tensor, weight: Tensor) -> Scaled:
    """Return (IA)3's change of a weight (O, I) or (O, I, k, k).

    Raises:
        CheckpointError: the numbers are neither one an output nor one an input, or could be both.
    """
    outputs, inputs = weight.shape[:2]
    shape = (outputs, weight[0].numel())
    by_input = factors.ndim == 2 and factors.shape[0] == 1 and factors.shape[1] == inputs
    by_output = factors.shape[0] == outputs and factors.numel() == outputs
    if weight.ndim == 4:  # both kinds are (1, C, 1, 1)
        by_output, by_input = factors.numel() == outputs, factors.numel() == inputs
    if by_output == by_input:
        why = "scales a convolution's inputs or its outputs" if by_output else "has another count than the layer"
        raise CheckpointError(f"its (IA)3 vector {tuple(factors.shape)} {why}; not read")
    return Scaled(shape, factors.flatten(), by_input)


def rotated(entries: Tensor, weight: Tensor, terms: int | None) -> Rotated:
    """Return OFT's change of a weight (O, I) or (O, I, 1, 1).

    Raises:
        CheckpointError: the blocks do not cover the inputs, or the layer is a convolution of a larger kernel: there
            PEFT sums overlapping patches, which is no change of the weight.
    """
    if weight[0].numel() != weight.shape[1]:
        raise CheckpointError(f"it is an OFT of a convolution of kernel {tuple(weight.shape[2:])}; only 1 x 1 is read")
    shape = (weight.shape[0], weight[0].numel())
    size = block_size(entries) if entries.ndim == 2 else 0
    fits = size > 1 and size * (size - 1) // 2 == entries.shape[1] and shape[1] % size == 0
    if not fits or len(entries) not in (1, shape[1] // size):
        raise CheckpointError(f"its OFT blocks {tuple(entries.shape)} do not cover {shape[1]} inputs")
    return Rotated(shape, entries, terms)
