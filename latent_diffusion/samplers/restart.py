"""Restart: follow the path, jump back by adding noise, follow it again.

Heun's method walks all levels; when it has passed r = sigma / alpha = r_min, noise brings x back up to r_max and the
stretch in between is walked again, `repeats` times. The noise washes out errors made above, the path makes few new.

Reference: Xu et al. 2023, arXiv:2306.14878, algorithm 1; the interval is the one for Stable Diffusion of their table.
The repeated stretch costs network evaluations beyond the number of steps; it belongs to the step that reached r_min.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from latent_diffusion.diffusion.forward import forward_step
from latent_diffusion.diffusion.level import Denoise, Level, Step
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.path import Coordinates
from latent_diffusion.errors import ConfigError
from latent_diffusion.samplers.heun import heun_step

__all__ = ["Restart"]


@dataclass(frozen=True)
class Restart:
    """Draws noise once for each time the stretch is walked again."""

    repeats: int = 1  # how often the stretch is walked again
    r_min: float = 0.1  # sigma / alpha at which x jumps back
    r_max: float = 2.0  # sigma / alpha up to which it jumps

    order: ClassVar[int] = 2
    intervals: ClassVar[bool] = False
    fractional: ClassVar[bool] = True
    aliases: ClassVar[tuple[str, ...]] = ("Restart",)
    automatic: ClassVar[str] = "karras"

    def __post_init__(self) -> None:
        if self.repeats < 0 or not 0.0 < self.r_min < self.r_max:
            raise ConfigError(f"restart with {self}: repeats must be 0 or more and 0 < r_min < r_max")

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step` per pair of levels; x (B, C, h, w) float32 is at levels[0]."""
        coordinates = Coordinates.of(levels[0])
        top, bottom = self.stretch(levels)
        for index, (level, after) in enumerate(pairwise(levels)):
            x, x0 = heun_step(denoise, x, level, after, coordinates)
            if index + 1 == bottom:
                start = levels[top]
                for _ in range(self.repeats):
                    fresh = noise.draw(x.shape[1:]).to(x)
                    x = forward_step(x, fresh, (after.alpha, after.sigma), (start.alpha, start.sigma))
                    for one, next_one in pairwise(levels[top : bottom + 1]):
                        x, x0 = heun_step(denoise, x, one, next_one, coordinates)
            yield Step(index, x, x0)

    def stretch(self, levels: Sequence[Level]) -> tuple[int, int]:
        """Return the places of the first level within r_max and of the last noisy one down to r_min.

        Both are 0 where no step lies between them, and nothing is walked again.
        """
        within = [k for k, level in enumerate(levels) if 0.0 < level.sigma <= self.r_max * level.alpha]
        if not within:
            return 0, 0
        passed = [k for k in within if levels[k].sigma <= self.r_min * levels[k].alpha]
        bottom = passed[0] if passed else within[-1]
        return (within[0], bottom) if bottom > within[0] else (0, 0)
