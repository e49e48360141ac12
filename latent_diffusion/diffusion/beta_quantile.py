"""Quantiles of the beta distribution: where a share p of Beta(a, b) lies below.

The distribution function is a power series where x <= 1/2 (there its terms halve or better),

    I_x(a, b) = x^a / (a B(a, b)) * (1 + sum_n prod_{k <= n} (k - b) / k * a x^n / (a + n)),

and 1 - I_{1-x}(b, a) above; its inverse is found by halving. Reference: Abramowitz & Stegun, 26.5.4 (DLMF 8.17.7).
"""

import math

__all__ = ["beta_cdf", "beta_quantile"]

HALVINGS = 90
"""Enough to find a quantile as small as 2^-60 to 30 bits."""


def beta_cdf(x: float, a: float, b: float) -> float:
    """Return the share of Beta(a, b) below x, for 0 <= x <= 1 and a, b > 0."""
    if x > 0.5:
        return 1.0 - beta_cdf(1.0 - x, b, a)
    if x <= 0.0:
        return 0.0
    term, total, n = 1.0, 1.0, 0
    while abs(term) > 1e-17 * total:
        n += 1
        term *= (n - b) / n * x
        total += term * a / (a + n)
    beta = math.exp(math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))
    return x**a / (a * beta) * total


def beta_quantile(share: float, a: float, b: float) -> float:
    """Return x with `beta_cdf(x, a, b)` = share, for 0 <= share <= 1."""
    if share in (0.0, 1.0):
        return share
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if beta_cdf(middle, a, b) < share else (low, middle)
    return 0.5 * (low + high)
