"""Denoising-diffusion GAN: the forward process in a few large steps, each undone by a generator with latents z.

    x0' = G(x_t, z, t),      x_s ~ q(x_s | x_t, x0'),      z ~ N(0, I)

After a large step x_s given x_t is no Gaussian, so an estimate of its mean does not do: G draws x0 from its law given
x_t, and the posterior of that x0 leads on. A discriminator of pairs (x_s, x_t) trains G.
Reference: Xiao et al. 2022, arXiv:2112.07804, eq. 4 to 6 and appendix B.1 (the noise law: the VP process at k / T).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from latent_diffusion.checks import check_integer
from latent_diffusion.diffusion.level import Level, Step
from latent_diffusion.diffusion.posterior import posterior, posterior_mean

__all__ = ["Generate", "draw_pictures", "large_steps"]

BETA_MIN, BETA_MAX = 0.1, 20.0  # of the VP process, arXiv:2011.13456, appendix C

Generate: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x (B, ...), z (B, Z), t (B,) = 0 .. T - 1) -> x0 (B, ...)."""


def large_steps(steps: int = 4) -> list[Level]:
    """Return steps + 1 levels, the noisiest first: alpha^2 = exp(-BETA_MIN u - (BETA_MAX - BETA_MIN) u^2 / 2).

    There u is k / T, and the times are T - 1 .. 0 and the clean one, -1.
    """
    check_integer("steps", steps, 1, 1000)
    found = list[Level]()
    for index in range(steps + 1):
        u = (steps - index) / steps
        log_alpha = -0.5 * (BETA_MIN * u + 0.5 * (BETA_MAX - BETA_MIN) * u * u)
        sigma = math.sqrt(-math.expm1(2 * log_alpha))
        found.append(Level(index, float(steps - index - 1), math.exp(log_alpha), sigma))
    return found


def draw_pictures(
    generate: Generate, x: Tensor, latents: int, levels: Sequence[Level], draw: Callable[[Sequence[int]], Tensor]
) -> Iterator[Step]:
    """Yield a `Step` per pair of levels: one evaluation each.

    Args:
        generate: the generator.
        x: noise (B, ...), at levels[0].
        latents: Z, numbers of z.
        levels: as `large_steps`.
        draw: shape of one sample -> standard normal (B, *shape), as `NoiseSource.draw`; z is drawn before the noise.
    """
    for index, (level, after) in enumerate(pairwise(levels)):
        x0 = generate(x, draw((latents,)).to(x), torch.full((len(x),), level.t, device=x.device))
        step = posterior(level.alpha, level.sigma, after.alpha, after.sigma)
        x = posterior_mean(x, x0, step)
        if after.sigma > 0.0:
            x = x + step.variance**0.5 * draw(x.shape[1:]).to(x)
        yield Step(index, x, x0)
