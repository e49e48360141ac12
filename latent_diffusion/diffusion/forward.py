"""The forward process: how noise is added.

One step, q(x_t | x_{t-1}) (Ho et al. 2020, arXiv:2006.11239, eq. 2), and the closed form of all steps up to t,
q(x_t | x_0) (eq. 4). In the general form of Kingma et al. 2021 (arXiv:2107.00630, eq. 1 and appendix A), between a
less noisy level s and a noisier one t:

    x_t = alpha_{t|s} x_s + sigma_{t|s} noise,   alpha_{t|s} = alpha_t / alpha_s,
    sigma_{t|s}^2 = sigma_t^2 - alpha_{t|s}^2 sigma_s^2
"""

from torch import Tensor

from latent_diffusion.diffusion.level import Coefficient

__all__ = ["add_noise", "forward_step", "transition"]


def add_noise(x0: Tensor, noise: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
    """Return x = alpha * x0 + sigma * noise, a draw of q(x_t | x_0). All tensors (B, C, h, w).

    Reference: arXiv:2006.11239, eq. 4.
    """
    return alpha * x0 + sigma * noise


def transition(
    alpha: Coefficient, sigma: Coefficient, alpha_next: Coefficient, sigma_next: Coefficient
) -> tuple[Coefficient, Coefficient]:
    """Return (alpha_{t|s}, sigma_{t|s}^2) of the forward transition from (alpha, sigma) to the noisier next level.

    Reference: arXiv:2107.00630, appendix A.1.
    """
    ratio = alpha_next / alpha
    return ratio, sigma_next**2 - (ratio * sigma) ** 2


def forward_step(
    x: Tensor, noise: Tensor, before: tuple[Coefficient, Coefficient], after: tuple[Coefficient, Coefficient]
) -> Tensor:
    """Return x at the noisier level `after` from x at level `before` and fresh noise: a draw of q(x_t | x_{t-1}).

    `before` and `after` are (alpha, sigma). With neighbouring levels of a `DiscreteVP` this is
    sqrt(1 - beta_t) x + sqrt(beta_t) noise.

    Reference: arXiv:2006.11239, eq. 2.
    """
    ratio, variance = transition(*before, *after)
    return ratio * x + variance**0.5 * noise
