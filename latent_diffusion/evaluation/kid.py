"""Kernel Inception Distance, on EfficientNet-Lite0 features: how far one set of pictures is from another.

The squared maximum mean discrepancy under the polynomial kernel k(x, y) = (x . y / d + 1)^3, in its unbiased form: its
mean does not depend on the number of pictures (FID's does), so sets of unequal size can be compared, and equal
distributions give 0 on average, sometimes slightly below.

Reference: Binkowski et al. 2018, "Demystifying MMD GANs", arXiv:1801.01401, section 4 and equation (4).
"""

from torch import Tensor

from latent_diffusion.errors import DataError

__all__ = ["kid"]

DEGREE = 3


def kid(x: Tensor, y: Tensor) -> float:
    """Return 1000 times the unbiased squared MMD of feature sets x (N, d) and y (M, d).

    Raises:
        DataError: fewer than two pictures on a side.
    """
    if min(len(x), len(y)) < 2:
        raise DataError(f"KID needs at least two pictures on each side, found {len(x)} and {len(y)}")
    x, y = x.double(), y.double()
    within = _mean_off_diagonal(_kernel(x, x)) + _mean_off_diagonal(_kernel(y, y))
    return 1000 * float(within - 2 * _kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** DEGREE


def _mean_off_diagonal(square: Tensor) -> Tensor:
    count = square.shape[0]
    return (square.sum() - square.diagonal().sum()) / (count * (count - 1))
