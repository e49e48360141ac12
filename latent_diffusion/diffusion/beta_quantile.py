"""Quantiles of the beta distribution: where a share p of Beta(a, b) lies below.

The distribution function is a power series where x <= 1/2 (there its terms halve or better),

    I_x(a, b) = x^a / B(a, b) * sum_n (prod_{k <= n} (k - b) / k) x^n / (a + n),

and 1 - I_{1-x}(b, a) above; its inverse is found by halving. Reference: Abramowitz & Stegun, 26.5.4 (DLMF 8.17.7).
"""

import math

import numpy as np

__all__ = ["beta_cdf", "beta_quantiles"]

TERMS = 60  # the last one is below 2^-60
HALVINGS = 56  # of an interval of length 1


def beta_cdf(x: np.ndarray, a: float, b: float) -> np.ndarray:
    """Return the shares of Beta(a, b) below x (K,), for 0 <= x <= 1 and a, b > 0."""
    above = x > 0.5
    y, a_, b_ = np.where(above, 1.0 - x, x), np.where(above, b, a), np.where(above, a, b)
    term, total = np.ones_like(y), 1.0 / a_
    for n in range(1, TERMS + 1):
        term = term * (n - b_) / n * y
        total = total + term / (a_ + n)
    share = y**a_ * total * math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))
    return np.where(above, 1.0 - share, share)


def beta_quantiles(shares: np.ndarray, a: float, b: float) -> np.ndarray:
    """Return x (K,) with `beta_cdf(x, a, b)` = shares, for shares (K,) in 0 .. 1; exactly 0 and 1 at the ends."""
    low, high = np.zeros_like(shares), np.ones_like(shares)
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        below = beta_cdf(middle, a, b) < shares
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(shares == 1.0, 1.0, np.where(shares == 0.0, 0.0, 0.5 * (low + high)))
