"""Kernel Inception Distance, on EfficientNet-Lite0 features: how far one set of pictures is from another.

The squared maximum mean discrepancy under the polynomial kernel k(x, y) = (x . y / d + 1)^3, in its unbiased form: its
mean does not depend on the number of pictures (FID's does), so sets of unequal size can be compared, and equal
distributions give 0 on average, sometimes slightly below.

Unbiased means that every pair in the three averages is a pair of independent pictures. A picture and its
reconstruction, or four drawings of one prompt and its real picture, are not: pairs of one group are left out, as
Gretton et al. 2012, "A Kernel Two-Sample Test", equation (4), does for sets that were drawn in pairs. Equal sets of
pairs give exactly 0.

Reference: Binkowski et al. 2018, "Demystifying MMD GANs", arXiv:1801.01401, section 4 and equation (4).
"""

import torch
from torch import Tensor

from latent_diffusion.errors import DataError

__all__ = ["kid"]

DEGREE = 3


def kid(x: Tensor, y: Tensor, x_group: Tensor | None = None, y_group: Tensor | None = None) -> float:
    """Return 1000 times the unbiased squared MMD of feature sets x (N, d) and y (M, d).

    Args:
        x: features of one set.
        y: features of the other.
        x_group: (N,) int; pictures of one group, in either set, are not independent. None = all are, and y is too.
        y_group: (M,) int; given with `x_group`.

    Raises:
        DataError: fewer than two groups on a side.
    """
    if x_group is None or y_group is None:
        x_group, y_group = torch.arange(len(x)), torch.arange(len(x), len(x) + len(y))
    counts = len(x_group.unique()), len(y_group.unique())
    if min(counts) < 2:
        raise DataError(f"KID needs at least two independent pictures on each side, found {counts[0]} and {counts[1]}")
    x, y = x.double(), y.double()
    within = _mean(x, x, x_group, x_group) + _mean(y, y, y_group, y_group)
    return 1000 * float(within - 2 * _mean(x, y, x_group, y_group))


def _mean(x: Tensor, y: Tensor, x_group: Tensor, y_group: Tensor) -> Tensor:
    """Return the mean kernel value over the pairs of different groups."""
    independent = x_group[:, None] != y_group[None, :]  # (N, M)
    kernel = (x @ y.T / x.shape[1] + 1) ** DEGREE
    return kernel[independent].mean()
