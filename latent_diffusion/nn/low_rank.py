"""Trainable changes of a frozen layer, made of a few small factors.

With W (O, I) of a linear layer or (O, I, k, k) of a convolution, s = alpha / r (alpha / sqrt(r) if rank-stabilised):

    LoRA   W + s * up @ down                        Hu et al. 2021, arXiv:2106.09685, eq. (3)
    LoHa   W + s * (a1 @ b1) * (a2 @ b2)            Hyeon-Woo et al. 2022, arXiv:2108.06098, eq. (4), entrywise
    LoKr   W + s * kron(w1, a2 @ b2)                Edalati et al. 2022, arXiv:2212.10650, eq. (3)
    whole  W + diff
    DoRA   m * (W + change) / |W + change|          Liu et al. 2024, arXiv:2402.09353, eq. (5), rows; any of the above

rsLoRA's scale: Kalajdzievski 2023, arXiv:2312.03732, eq. (4). Every change is zero at the start: the adapted layer then
computes what the frozen one does. Parameters have the names of the factors in adapter files.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Adapted",
    "Change",
    "DoRA",
    "Hadamard",
    "Kronecker",
    "LowRank",
    "Sum",
    "Whole",
    "alpha_scale",
    "split_dimension",
]

Layer = nn.Linear | nn.Conv2d


def alpha_scale(alpha: float, rank: int, *, rank_stabilised: bool = False) -> float:
    """Return the factor of a change: alpha / r, or alpha / sqrt(r) if rank-stabilised."""
    return alpha / (math.sqrt(rank) if rank_stabilised else rank)


class Change(nn.Module, ABC):
    """The trainable change of one layer's weight.

    `reads_weight`: whether `forward` reads the frozen weight itself, not only the output of its layer.
    """

    reads_weight: ClassVar[bool] = True

    def __init__(self, scale: float) -> None:
        """Keep the factor of the change."""
        super().__init__()
        self.scale = scale

    @abstractmethod
    def changed(self, weight: Tensor) -> Tensor:
        """Return the changed `weight`, of the same shape."""

    def forward(self, x: Tensor, layer: Layer) -> Tensor:
        """Return the output of `layer` with its changed weight."""
        return run(layer, x, self.changed(layer.weight))


class Sum(Change):
    """A change that is added to the weight, whatever the weight is."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """Return the change as a matrix (O, I * k * k), scale included."""

    def changed(self, weight: Tensor) -> Tensor:
        """Return weight + matrix."""
        return weight + self.matrix().view_as(weight)


class LowRank(Sum):
    """LoRA; two thin layers beside the frozen one, so the changed weight is never formed."""

    reads_weight = False

    def __init__(self, layer: Layer, rank: int, scale: float, generator: torch.Generator) -> None:
        """Draw `down` (r, I, k, k) uniformly as torch initialises layers; `up` (O, r, 1, 1) is zero.

        Factors of a linear layer have no kernel dimensions.
        """
        super().__init__(scale)
        ones = (1,) * (layer.weight.ndim - 2)
        self.down = nn.Parameter(drawn((rank, *layer.weight.shape[1:]), layer.weight, generator))
        self.up = nn.Parameter(zeros((layer.weight.shape[0], rank, *ones), layer.weight))

    def matrix(self) -> Tensor:
        """Return s * up @ down, (O, I * k * k)."""
        return self.scale * (self.up.flatten(1) @ self.down.flatten(1))

    def forward(self, x: Tensor, layer: Layer) -> Tensor:
        """Return layer(x) + s * up(down(x))."""
        small = run(layer, x, self.down, bias=False)
        change = F.linear(small, self.up) if self.up.ndim == 2 else F.conv2d(small, self.up)
        return torch.add(layer(x), change, alpha=self.scale)


class Hadamard(Sum):
    """LoHa: the entrywise product of two matrices of rank r, which has a rank of up to r^2."""

    def __init__(self, layer: Layer, rank: int, scale: float, generator: torch.Generator) -> None:
        """Draw factors (O, r) and (r, I * k * k) with LyCORIS's deviations .1 and 1; the last left one is zero."""
        super().__init__(scale)
        rows, columns = layer.weight.flatten(1).shape
        normal, weight = nn.init.normal_, layer.weight
        self.hada_w1_a = nn.Parameter(normal(zeros((rows, rank), weight), std=0.1, generator=generator))
        self.hada_w1_b = nn.Parameter(normal(zeros((rank, columns), weight), std=1.0, generator=generator))
        self.hada_w2_a = nn.Parameter(zeros((rows, rank), weight))
        self.hada_w2_b = nn.Parameter(normal(zeros((rank, columns), weight), std=1.0, generator=generator))

    def matrix(self) -> Tensor:
        """Return s * (a1 @ b1) * (a2 @ b2), (O, I * k * k)."""
        return self.scale * (self.hada_w1_a @ self.hada_w1_b) * (self.hada_w2_a @ self.hada_w2_b)


class Kronecker(Sum):
    """LoKr: a small whole matrix, Kronecker a matrix of rank r, or a whole one where rank r would not be smaller."""

    def __init__(
        self, layer: Layer, rank: int, scale: float, generator: torch.Generator, factor: int | None = None
    ) -> None:
        """Split O = o1 * o2 and I = i1 * i2 (`split_dimension`) and draw w1 (o1, i1), w2 (o2, i2 * k * k).

        The kernel belongs to the second matrix. With two whole matrices the scale is 1, as in readers of such files.
        """
        (o1, o2), (i1, i2) = (split_dimension(n, factor) for n in layer.weight.shape[:2])
        kernel = layer.weight[0, 0].numel()
        whole = rank >= min(o2, i2 * kernel)
        super().__init__(1.0 if whole else scale)
        weight = layer.weight
        self.lokr_w1 = nn.Parameter(drawn((o1, i1), weight, generator))
        if whole:
            self.lokr_w2 = nn.Parameter(zeros((o2, i2 * kernel), weight))
        else:
            self.lokr_w2_a = nn.Parameter(zeros((o2, rank), weight))
            self.lokr_w2_b = nn.Parameter(drawn((rank, i2 * kernel), weight, generator))

    def matrix(self) -> Tensor:
        """Return s * kron(w1, w2), (O, I * k * k)."""
        second = self.lokr_w2 if hasattr(self, "lokr_w2") else self.lokr_w2_a @ self.lokr_w2_b
        return self.scale * torch.kron(self.lokr_w1, second)


class Whole(Sum):
    """A change of every number of the weight."""

    def __init__(self, layer: Layer) -> None:
        """Begin with zeros, `diff` of the weight's shape."""
        super().__init__(1.0)
        self.diff = nn.Parameter(zeros(tuple(layer.weight.shape), layer.weight))

    def matrix(self) -> Tensor:
        """Return diff, (O, I * k * k)."""
        return self.diff.flatten(1)


class DoRA(Change):
    """Length and direction apart: the direction changes by another form, each row's length is learned.

    No gradient goes through the length of the changed row, as in section 4.3 of the paper.
    """

    def __init__(self, layer: Layer, direction: Sum) -> None:
        """Begin with the lengths of the frozen weight's rows, `dora_scale` (O,)."""
        super().__init__(direction.scale)
        self.direction = direction
        rows = layer.weight.detach().to(wide(layer.weight)).flatten(1)
        self.dora_scale = nn.Parameter(torch.linalg.vector_norm(rows, dim=1))

    def forward(self, x: Tensor, layer: Layer) -> Tensor:
        """Return what the layer with weight m * (W + change) / |W + change| makes of `x`."""
        with torch.no_grad():
            lengths = torch.linalg.vector_norm(layer.weight.flatten(1) + self.direction.matrix(), dim=1)
        turned = self.direction(x, layer)
        channels = (-1,) if layer.weight.ndim == 2 else (-1, 1, 1)
        ratio = (self.dora_scale / lengths).view(channels)
        if layer.bias is None:
            return ratio * turned
        bias = layer.bias.view(channels)
        return ratio * (turned - bias) + bias

    def changed(self, weight: Tensor) -> Tensor:
        """Return the changed `weight`, of the same shape."""
        turned = weight.flatten(1) + self.direction.matrix()
        lengths = torch.linalg.vector_norm(turned, dim=1, keepdim=True)
        return (self.dora_scale[:, None] * turned / lengths).view_as(weight)


class Adapted(nn.Module):
    """A frozen layer with a trainable change, in the layer's place."""

    def __init__(self, layer: Layer, change: Change) -> None:
        """Hold both; the layer's own parameters are not trained."""
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.change = change
        self.active = True

    def forward(self, x: Tensor) -> Tensor:
        """Return the changed layer's output; the frozen layer's while not `active`."""
        return self.change(x, self.layer) if self.active else self.layer(x)

    @property
    def weight(self) -> Tensor:
        """The frozen weight: its dtype, device and shape are those of the layer."""
        return self.layer.weight


def run(layer: Layer, x: Tensor, weight: Tensor, *, bias: bool = True) -> Tensor:
    """Return what `layer` with another weight makes of `x`: same stride, padding and, unless left out, bias."""
    added = layer.bias if bias else None
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, added)
    return F.conv2d(x, weight, added, layer.stride, layer.padding, layer.dilation, layer.groups)  # type: ignore[arg-type]


def drawn(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Return values uniform in +-1 / sqrt(inputs), as torch initialises layers, on the device of `like`."""
    made = torch.empty(shape)
    nn.init.kaiming_uniform_(made, a=math.sqrt(5), generator=generator)
    return made.to(like.device, wide(like))


def zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return zeros on the device of `like`."""
    return torch.zeros(shape, dtype=wide(like), device=like.device)


def wide(weight: Tensor) -> torch.dtype:
    """Return the dtype of a change of `weight`: its own, or float32 where the weight has fewer bits."""
    return torch.promote_types(weight.dtype, torch.float32)


def split_dimension(size: int, factor: int | None = None) -> tuple[int, int]:
    """Return (small, large) with small * large = size: small is `factor` where it divides, else nearest to the root."""
    if factor is not None and 0 < factor <= size and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    small = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
    return small, size // small
