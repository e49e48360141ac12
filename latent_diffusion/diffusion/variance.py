"""The learned variance of the reverse step: a second half of the network's channels chooses it within its bounds.

The variance of p(x_s | x_t) lies between that of the posterior, beta~, which is right where x0 is known, and that of
the forward step, beta, which is right for data of unit variance (Ho et al. 2020, arXiv:2006.11239, section 3.2). The
network's v, -1 to 1 between the two, interpolates their logarithms (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15):

    variance = exp(f log beta + (1 - f) log beta~) = beta~ (beta / beta~)^f,      f = (1 + v) / 2

v is not clipped, as there. Such a model is `variance_type: learned_range` in diffusers. Samplers other than ancestral
sampling have no use for v and drop it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from latent_diffusion.diffusion.level import Coefficient, Denoise, Level

__all__ = ["Estimate", "Estimates", "Ranged", "interpolated", "mean_and_range", "parted", "ranged", "with_range"]

Estimate = Tensor | tuple[Tensor, Tensor]
"""x0 (B, C, h, w); of a model with learned variance x0 and v, the same shape each."""

Estimates = Callable[[Tensor, Level], Estimate]
"""(x (B, C, h, w), level) -> the estimate there."""


@dataclass(frozen=True)
class Ranged:
    """The denoiser of a model with learned variance; called as every denoiser is, it returns x0 alone."""

    both: Estimates  # x0 and v

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        """Return x0 (B, C, h, w)."""
        return parted(self.both(x, level))[0]


def ranged(estimate: Estimates, *, learned: bool) -> Denoise:
    """Return the denoiser of a function that gives x0 and v where the variance is learned, and x0 alone elsewhere."""
    return Ranged(estimate) if learned else estimate  # pyright: ignore[reportReturnType]  # x0 alone


def with_range(denoise: Denoise) -> Estimates:
    """Return the function behind a denoiser: the inverse of `ranged`."""
    return denoise.both if isinstance(denoise, Ranged) else denoise


def parted(estimate: Estimate) -> tuple[Tensor, Tensor | None]:
    """Return x0 (B, C, h, w), and v of the same shape, or None where the model has no learned variance."""
    return estimate if isinstance(estimate, tuple) else (estimate, None)


def mean_and_range(output: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two halves of a network's output (B, 2 C, h, w): that of the mean, and v."""
    mean, v = output.chunk(2, dim=1)
    return mean, v


def interpolated(least: Coefficient, most: Coefficient, v: Tensor) -> Tensor:
    """Return the variance (B, C, h, w) that v chooses: `least`, the posterior's, at -1, `most` at 1; both above 0.

    Reference: arXiv:2102.09672, eq. 15.
    """
    return least * (most / least) ** (0.5 * (1.0 + v))
