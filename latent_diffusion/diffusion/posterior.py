"""The posterior q(x_s | x_t, x_0) of a less noisy level s given a noisier one t: what ancestral sampling imitates.

    mean     = (alpha_{t|s} sigma_s^2 / sigma_t^2) x_t + (alpha_s sigma_{t|s}^2 / sigma_t^2) x_0
    variance = sigma_{t|s}^2 sigma_s^2 / sigma_t^2

Reference: Ho et al. 2020, arXiv:2006.11239, eq. 6 and 7 (neighbouring levels); Kingma et al. 2021, arXiv:2107.00630,
appendix A.2 (any two levels). No division by alpha_t: it holds at zero terminal SNR.
"""

from typing import NamedTuple

from torch import Tensor

from latent_diffusion.diffusion.forward import transition
from latent_diffusion.diffusion.level import Coefficient

__all__ = ["PosteriorCoefficients", "posterior", "posterior_mean"]


class PosteriorCoefficients(NamedTuple):
    """mean = of_x * x_t + of_x0 * x_0, and the variance; host floats or broadcastable tensors."""

    of_x: Coefficient
    of_x0: Coefficient
    variance: Coefficient


def posterior(
    alpha: Coefficient, sigma: Coefficient, alpha_before: Coefficient, sigma_before: Coefficient
) -> PosteriorCoefficients:
    """Return the coefficients of q(x_s | x_t, x_0), t = (alpha, sigma), s = (alpha_before, sigma_before), less noisy.

    Reference: arXiv:2006.11239, eq. 7.
    """
    ratio, added = transition(alpha_before, sigma_before, alpha, sigma)
    share = sigma_before**2 / sigma**2
    return PosteriorCoefficients(of_x=ratio * share, of_x0=alpha_before * added / sigma**2, variance=added * share)


def posterior_mean(x: Tensor, x0: Tensor, coefficients: PosteriorCoefficients) -> Tensor:
    """Return the mean of q(x_s | x_t, x_0), (B, C, h, w). Reference: arXiv:2006.11239, eq. 7."""
    return coefficients.of_x * x + coefficients.of_x0 * x0
