"""Critically damped Langevin diffusion: noise enters a velocity w, and the data x follow it.

    dx = w da,      dw = -(x + 2 w) da + 2 dW,      a = 0 .. END,      stationary law N(0, I) of u = (x, w)

The drift matrix is -I + N with N^2 = 0, so it has an exponential without series, and the law of u is known exactly:

    E(a) = e^-a [[1 + a, a], [-a, 1 - a]],      mean = E u0,      covariance = I - E (I - cov u0) E'

Velocities start as N(0, spread). Given x0 alone u is Gaussian (hybrid score matching), and only its score by w is
learned. The paper's time t, mass M and velocity v are a = beta t / sqrt(M) and w = v / sqrt(M): with its beta = 4 and
M = 1/4, its time 1 is a = 8. The mass is a choice of units.

Tensors hold positions and velocities one after the other along dimension 1: (B, 2C, ...).
Reference: Dockhorn et al. 2022, arXiv:2112.07068, eq. 5, section 3.1 (HSM), 3.2 (mixed score) and appendix B.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

__all__ = ["END", "SPREAD", "Damped", "Kernel", "VelocityScore", "carried", "kernel"]

END = 8.0
"""The last time: E(8) has entries of .003 at most."""
SPREAD = 0.04
"""Variance of the first velocities; the paper's gamma."""

VelocityScore: TypeAlias = Callable[[Tensor, float], Tensor]
"""(u (B, 2C, ...), time a) -> the gradient of log q(u) by w, (B, C, ...)."""


class Kernel(NamedTuple):
    """The law of u at a time, given u0: its matrix E and the Cholesky factor of its covariance, float64 each."""

    xx: Tensor
    xw: Tensor
    wx: Tensor
    ww: Tensor
    noise_x: Tensor  # x = ... + noise_x n_x
    noise_wx: Tensor  # w = ... + noise_wx n_x + noise_w n_w
    noise_w: Tensor


def kernel(a: Tensor, spread: float = 0.0) -> Kernel:
    """Return the law of u at times a (B,), above 0, where velocities start with variance `spread` (0: they are given).

    The variance of x is P(3, 2a) + spread (a e^-a)^2 with the incomplete gamma function P: the plain difference
    1 - e^-2a (1 + 2a + 2a^2) loses all digits at small a.
    Reference: arXiv:2112.07068, appendix B.1.
    """
    a = a.double()
    fall = torch.exp(-a)
    xx, xw, wx, ww = fall * (1 + a), fall * a, -fall * a, fall * (1 - a)
    variance_x = torch.special.gammainc(torch.full_like(a, 3.0), 2 * a) + spread * xw**2
    shared = 2 * (fall * a) ** 2 + spread * xw * ww
    variance_w = -torch.expm1(-2 * a) + 2 * fall**2 * a * (1 - a) + spread * ww**2
    noise_x = variance_x.sqrt()
    noise_wx = shared / noise_x
    return Kernel(xx, xw, wx, ww, noise_x, noise_wx, (variance_w - noise_wx**2).sqrt())


def carried(u: Tensor, law: Kernel, noise: Tensor) -> Tensor:
    """Return a draw of u (B, 2C, ...) at the kernel's time, given u at time 0 and standard normal `noise` like u."""
    x, w = u.chunk(2, 1)
    noise_x, noise_w = noise.chunk(2, 1)
    xx, xw, wx, ww, of_x, of_wx, of_w = (_like(number, x) for number in law)
    return torch.cat([xx * x + xw * w + of_x * noise_x, wx * x + ww * w + of_wx * noise_x + of_w * noise_w], 1)


class Damped:
    """What a network learns of the process: the velocity's own part of the noise, apart from what Gaussian data need.

    A network's output o stands for the noise n_w = noise_w w / variance_w + o, where variance_w is that of data
    N(0, 1), and for the score by w, -n_w / noise_w.
    """

    def __init__(self, spread: float = SPREAD) -> None:
        """Take the variance of the first velocities."""
        self.spread = spread

    def perturbed(self, x0: Tensor, a: Tensor, noise: Tensor) -> Tensor:
        """Return u (B, 2C, ...) at times a (B,), given x0 (B, C, ...) alone and noise (B, 2C, ...)."""
        return carried(torch.cat([x0, torch.zeros_like(x0)], 1), kernel(a, self.spread), noise)

    def noise(self, output: Tensor, u: Tensor, a: Tensor) -> Tensor:
        """Return the velocity's noise (B, C, ...) that a network's output (B, C, ...) at u and times a (B,) means."""
        law, w = kernel(a, self.spread), u.chunk(2, 1)[1]
        variance = 1 - (1 - self.spread) * law.ww**2
        return _like(law.noise_w / variance, w) * w + output

    def losses(self, network: Callable[[Tensor, Tensor], Tensor], x0: Tensor, a: Tensor, noise: Tensor) -> Tensor:
        """Return the loss of each sample, (B,): the squared error of the velocity's noise, a mean over its values.

        Args:
            network: (u (B, 2C, ...), a (B,)) -> output (B, C, ...).
            x0: data (B, C, ...).
            a: times (B,), above 0 to `END`.
            noise: standard normal (B, 2C, ...).

        Reference: arXiv:2112.07068, eq. 8 with the weight lambda = 1 / l^2.
        """
        u = self.perturbed(x0, a, noise)
        error = self.noise(network(u, a), u, a) - noise.chunk(2, 1)[1]
        return error.square().flatten(1).mean(1)

    def score(self, network: Callable[[Tensor, Tensor], Tensor]) -> VelocityScore:
        """Return the score by w that a network stands for."""

        def score(u: Tensor, time: float) -> Tensor:
            a = torch.full((len(u),), time, dtype=torch.float64, device=u.device)
            return -self.noise(network(u, a), u, a) / _like(kernel(a, self.spread).noise_w, u)

        return score


def _like(number: Tensor, x: Tensor) -> Tensor:
    """Return (B,) or () numbers as factors of x (B, C, ...)."""
    return number.to(x).view(-1, *[1] * (x.ndim - 1))
