"""DDPM: ancestral sampling from the posterior q(x_s | x_t, x0) with the network's x0 in place of the true one.

    x_s = mean(x_t, x0) + sqrt(variance) * noise

Reference: Ho et al. 2020, arXiv:2006.11239, algorithm 2 with eq. 7; the variance is the posterior's (diffusers:
`variance_type="fixed_small"`), or the model's own where that is learned (`diffusion/variance.py`). Between levels
further apart than one training step this is the sampler of Nichol & Dhariwal 2021, arXiv:2102.09672, section 4.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from latent_diffusion.diffusion.forward import transition
from latent_diffusion.diffusion.level import Denoise, Level, Step
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.posterior import posterior, posterior_mean
from latent_diffusion.diffusion.variance import interpolated, parted, with_range

__all__ = ["DDPM"]


@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling; draws noise in every step but the last."""

    order: ClassVar[int] = 1
    intervals: ClassVar[bool] = False
    fractional: ClassVar[bool] = False
    aliases: ClassVar[tuple[str, ...]] = ("DDPM", "DDPMScheduler")

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step` per pair of levels; x (B, C, h, w) float32 is at levels[0]."""
        for index, (level, after) in enumerate(pairwise(levels)):
            x0, v = parted(with_range(denoise)(x, level))
            step = posterior(level.alpha, level.sigma, after.alpha, after.sigma)
            x = posterior_mean(x, x0, step)
            if step.variance > 0.0:
                variance = step.variance
                if v is not None:
                    _, most = transition(after.alpha, after.sigma, level.alpha, level.sigma)
                    variance = interpolated(step.variance, most, v)
                x = x + variance**0.5 * noise.draw(x.shape[1:]).to(x)
            yield Step(index, x, x0)
