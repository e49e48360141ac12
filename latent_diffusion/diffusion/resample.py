"""Resampling: walk each stretch of the path several times, so that what is painted comes to agree with what is kept.

After a stretch of `jump_length` steps from level t down to s, noise is added back up to t,

    x_t = alpha_{t|s} x_s + sigma_{t|s} noise,

and the stretch is walked again. The first walk paints the hole knowing its surroundings only as noise; the next ones
start from a hole that has seen them. Reference: Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1 and section 4.2.

Noise is added by the forward process between any two levels, so every sampler can be wrapped. Each walk is a run of the
sampler of its own: one that keeps a history starts it anew, since the old one belongs to another path.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from latent_diffusion.checks import check_integer
from latent_diffusion.diffusion.forward import forward_step
from latent_diffusion.diffusion.level import Denoise, Level, Sampler, Step
from latent_diffusion.diffusion.noise import NoiseSource

__all__ = ["Resampled"]

MOST = 1_000_000  # repeats, and steps of a stretch; more than any run has


@dataclass(frozen=True)
class Resampled:
    """A sampler that goes back `repeats` times at the end of each stretch; is called as a sampler is."""

    sampler: Sampler
    repeats: int  # walks of each stretch beside the first; 0 = the plain sampler
    jump_length: int = 10  # steps of a stretch; the paper's figure for 250 steps

    order: ClassVar[int] = 1  # of no path: it goes back and forth. Choose levels as for the sampler inside
    intervals: ClassVar[bool] = False
    fractional: ClassVar[bool] = False
    aliases: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name, least in (("repeats", 0), ("jump_length", 1)):
            value = getattr(self, name)
            check_integer(name, value, least, MOST)

    def steps(self, levels: Sequence[Level]) -> int:
        """Return how many steps a run over `levels` has."""
        return (len(levels) - 1) * (self.repeats + 1)

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step`, numbered through, for each step of each walk; x (B, C, h, w) float32 is at levels[0]."""
        if not self.repeats:
            yield from self.sampler(denoise, x, levels, noise)
            return
        done = 0
        for first in range(0, len(levels) - 1, self.jump_length):
            stretch = levels[first : first + self.jump_length + 1]
            start, end = stretch[0], stretch[-1]
            for walk in range(self.repeats + 1):
                if walk:
                    fresh = noise.draw(x.shape[1:]).to(x)
                    x = forward_step(x, fresh, (end.alpha, end.sigma), (start.alpha, start.sigma))
                for step in self.sampler(denoise, x, stretch, noise):
                    x = step.x
                    yield Step(done, x, step.x0)
                    done += 1
