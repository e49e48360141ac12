"""DDIM: the deterministic sampler, and the family between it and ancestral sampling.

    x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) noise(x_t) + std * fresh noise,
    noise(x_t) = (x_t - alpha_t x0) / sigma_t,
    std = eta * (sigma_s / sigma_t) * sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2)

Reference: Song, Meng & Ermon 2021, arXiv:2010.02502, eq. 12 and 16. eta 0 is also Euler's method on the probability
flow (their section 4.3), eta 1 is DDPM. No division by alpha_t: it serves zero terminal SNR too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from latent_diffusion.diffusion.level import Denoise, Level, Step
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.posterior import posterior
from latent_diffusion.errors import ConfigError

__all__ = ["DDIM"]


@dataclass(frozen=True)
class DDIM:
    """Deterministic with eta 0 (then it never draws from `noise`)."""

    eta: float = 0.0  # share of the ancestral noise, 0 .. 1

    order: ClassVar[int] = 1
    intervals: ClassVar[bool] = False
    fractional: ClassVar[bool] = False
    aliases: ClassVar[tuple[str, ...]] = ("DDIM", "DDIMScheduler")
    automatic: ClassVar[str] = "leading"
    ends_by: ClassVar[str] = "set_alpha_to_one"

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ConfigError(f"eta {self.eta} is out of range; use 0 (deterministic) to 1 (as noisy as DDPM)")

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step` per pair of levels; x (B, C, h, w) float32 is at levels[0]."""
        for index, (level, after) in enumerate(pairwise(levels)):
            x0 = denoise(x, level)
            variance = self.eta**2 * posterior(level.alpha, level.sigma, after.alpha, after.sigma).variance
            of_x = max(after.sigma**2 - variance, 0.0) ** 0.5 / level.sigma
            x = of_x * x + (after.alpha - of_x * level.alpha) * x0
            if variance > 0.0:
                x = x + variance**0.5 * noise.draw(x.shape[1:]).to(x)
            yield Step(index, x, x0)
