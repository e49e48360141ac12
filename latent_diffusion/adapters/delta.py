"""The forms of a weight's change: a few small factors that stand for one large matrix.

A weight (O, I) of a linear layer or (O, I, k, k) of a convolution is seen as the matrix (O, I * k * k), and each form
gives the change of that matrix, scale included, in float32.

    LoRA   scale * up @ down                          Hu et al. 2021, arXiv:2106.09685, eq. (3)
    LoHa   scale * (a1 @ b1) * (a2 @ b2), entrywise   Hyeon-Woo et al. 2022, arXiv:2108.06098, eq. (4) (FedPara)
    LoKr   scale * kron(w1, w2)                       Edalati et al. 2022, arXiv:2212.10650, eq. (3) (KronA)
    full   the matrix itself
    DoRA   m * (W + LoRA) / |W + LoRA| - W            Liu et al. 2024, arXiv:2402.09353, eq. (5), with any form as LoRA

Convolutions may have a core tensor (r, r, k, k) between two thin factors (Tucker form: Kim et al. 2016,
arXiv:1511.06530, section 3.1), which LyCORIS uses in each of the first three (Yeh et al. 2023,
arXiv:2309.14859, appendix B).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Decomposed", "Delta", "Full", "Hadamard", "Kronecker", "LowRank", "Product"]


class Delta(Protocol):
    """A change of one weight."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows O and columns I * k * k."""
        ...

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the change of `weight` (O, I * k * k) float32: same shape and device, float32."""
        ...


@dataclass(frozen=True)
class Product:
    """A matrix as `left @ right`, or with a core: m[o, i, p, q] = sum_ab left[o, a] core[a, b, p, q] right[b, i].

    Factors keep the shapes of the file, where those of convolutions have a kernel: all but the first are columns.
    """

    left: Tensor  # (O, r) or (O, r, 1, 1)
    right: Tensor  # (r, I) or (r, I, k, k); the kernel is the core's where there is one
    core: Tensor | None = None  # (r, r, k, k)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the product."""
        kernel = 1 if self.core is None else self.core[0, 0].numel()
        return self.left.shape[0], self.right[0].numel() * kernel

    @property
    def rank(self) -> int:
        """Rows of the right factor."""
        return self.right.shape[0]

    def fits(self) -> bool:
        """Whether the factors can be multiplied."""
        inner = (self.left[0].numel(), self.right.shape[0])
        return inner[0] == inner[1] if self.core is None else tuple(self.core.shape[:2]) == inner

    def matrix(self, device: torch.device) -> Tensor:
        """Return the product, float32 on `device`."""
        left, right = _float(self.left, device).flatten(1), _float(self.right, device).flatten(1)
        if self.core is None:
            return left @ right
        core = _float(self.core, device)
        return torch.einsum("oa,abpq,bi->oipq", left, core, right).flatten(1)


@dataclass(frozen=True)
class LowRank:
    """LoRA: scale times a product of low rank."""

    factors: Product
    scale: float  # alpha / r

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.factors.shape

    def matrix(self, weight: Tensor) -> Tensor:
        """Return scale * up @ down."""
        return self.scale * self.factors.matrix(weight.device)


@dataclass(frozen=True)
class Hadamard:
    """LoHa: the entrywise product of two matrices of low rank."""

    first: Product
    second: Product
    scale: float  # alpha / r

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.first.shape

    def matrix(self, weight: Tensor) -> Tensor:
        """Return scale * first * second."""
        return self.scale * self.first.matrix(weight.device) * self.second.matrix(weight.device)


@dataclass(frozen=True)
class Kronecker:
    """LoKr: the Kronecker product of two small matrices, each whole or a product itself.

    The kernel's k * k columns lie innermost in the second factor, so the product of the two flat matrices is the flat
    product of the tensors.
    """

    first: Product | Tensor  # (o1, i1)
    second: Product | Tensor  # (o2, i2 * k * k)
    scale: float  # alpha / r; 1 where both are whole

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.first.shape[0] * self.second.shape[0], self.first.shape[1] * self.second.shape[1]

    def matrix(self, weight: Tensor) -> Tensor:
        """Return scale * kron(first, second)."""
        return self.scale * torch.kron(_whole(self.first, weight.device), _whole(self.second, weight.device))


@dataclass(frozen=True)
class Full:
    """The change itself, as large as the weight."""

    change: Tensor  # (O, I * k * k)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.change.shape[0], self.change.shape[1]

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the change."""
        return _float(self.change, weight.device)


@dataclass(frozen=True)
class Decomposed:
    """DoRA: the changed weight, with each row (or each input's columns) scaled to a learned length."""

    direction: Delta  # what changes the weight before its lengths are set
    magnitude: Tensor  # (O,), or (I,) where `by_input`
    by_input: bool  # lengths over all outputs and the kernel (early LyCORIS) in place of over a row

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.direction.shape

    def matrix(self, weight: Tensor) -> Tensor:
        """Return magnitude * (weight + direction) / its lengths - weight."""
        turned = weight + self.direction.matrix(weight)
        lengths = _float(self.magnitude, weight.device)
        if self.by_input:
            parts = turned.unflatten(1, (len(lengths), -1))  # (O, I, k * k)
            found = torch.linalg.vector_norm(parts, dim=(0, 2), keepdim=True)
            changed = (parts * (lengths[:, None] / found.clamp_min(SHORTEST))).flatten(1)
        else:
            found = torch.linalg.vector_norm(turned, dim=1, keepdim=True)
            changed = turned * (lengths[:, None] / found.clamp_min(SHORTEST))
        return changed - weight


SHORTEST = 1e-12  # length that a row of zeros is taken to have


def _whole(part: Product | Tensor, device: torch.device) -> Tensor:
    return part.matrix(device) if isinstance(part, Product) else _float(part, device)


def _float(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device=device, dtype=torch.float32)
