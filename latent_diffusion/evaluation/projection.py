"""Linear maps fitted on real pictures: principal-component whitening, and Fisher's discriminant of styles."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Discriminant", "Whitening"]

RIDGE = 1e-4
"""Share of the mean variance added to a covariance before it is inverted."""


@dataclass(frozen=True)
class Whitening:
    """x -> (x - mean) @ basis: the leading principal components, each of unit variance on the data it was fitted on."""

    mean: Tensor  # (D,)
    basis: Tensor  # (D, K)

    @staticmethod
    def fit(x: Tensor, dimensions: int) -> "Whitening":
        """Fit on x (N, D); keeps min(`dimensions`, N - 1, D) components. float64 inside, float32 out."""
        mean = x.double().mean(dim=0)
        centred = x.double() - mean
        covariance = centred.T @ centred / max(len(x) - 1, 1)
        values, vectors = torch.linalg.eigh(covariance)  # ascending
        keep = min(dimensions, len(x) - 1, x.shape[1])
        values, vectors = values[-keep:].flip(0), vectors[:, -keep:].flip(1)
        floor = values[0] * 1e-9  # a constant feature has no direction to blow up
        return Whitening(mean.float(), (vectors / values.clamp(min=floor).sqrt()).float())

    def __call__(self, x: Tensor) -> Tensor:
        """Return (N, K) float32 of x (N, D)."""
        return (x - self.mean) @ self.basis


@dataclass(frozen=True)
class Discriminant:
    """Classes with Gaussian features that share one covariance: the linear rule of least error (Fisher, 1936)."""

    weight: Tensor  # (D, C)
    bias: Tensor  # (C,)

    @staticmethod
    def fit(x: Tensor, labels: Tensor, classes: int) -> "Discriminant":
        """Fit on x (N, D) with labels (N,) in 0 .. classes - 1; every class takes part with equal prior."""
        x = x.double()
        means = torch.stack([x[labels == c].mean(dim=0) for c in range(classes)])  # (C, D)
        residual = x - means[labels]
        covariance = residual.T @ residual / max(len(x) - classes, 1)
        covariance += RIDGE * covariance.diagonal().mean() * torch.eye(x.shape[1], dtype=x.dtype)
        weight = torch.linalg.solve(covariance, means.T)  # (D, C)
        bias = -0.5 * (means.T * weight).sum(dim=0)
        return Discriminant(weight.float(), bias.float())

    def __call__(self, x: Tensor) -> Tensor:
        """Return the most probable class (N,) of x (N, D)."""
        return (x @ self.weight + self.bias).argmax(dim=1)
