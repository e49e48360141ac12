"""Sampling of a consistency model: jump to the end, add noise, jump again.

    x_s = alpha_s x0(x_t) + sigma_s * fresh noise

Reference: Song et al. 2023, arXiv:2303.01469, algorithm 1; Luo et al. 2023, arXiv:2310.04378 (latent consistency
models). For models distilled to say the end of the path; with any other the picture loses contrast and detail. The
boundary factors of the paper (c_out = 1 - 2e-6, c_skip = 3e-7 at t = 50) are left out, as A1111 and ComfyUI do:
so the last latent is the estimate itself, and what inpainting keeps arrives unchanged.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from latent_diffusion.diffusion.forward import add_noise
from latent_diffusion.diffusion.level import Denoise, Level, Step
from latent_diffusion.diffusion.noise import NoiseSource

__all__ = ["LCM"]


@dataclass(frozen=True)
class LCM:
    """Draws noise in every step but the last."""

    order: ClassVar[int] = 0
    intervals: ClassVar[bool] = False
    fractional: ClassVar[bool] = False
    aliases: ClassVar[tuple[str, ...]] = ("LCM", "LCMScheduler", "FlowMatchLCMScheduler")

    def __call__(self, denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: NoiseSource) -> Iterator[Step]:
        """Yield a `Step` per pair of levels; x (B, C, h, w) float32 is at levels[0]."""
        for index, (level, after) in enumerate(pairwise(levels)):
            x0 = denoise(x, level)
            x = x0 if after.sigma == 0.0 else add_noise(x0, noise.draw(x.shape[1:]).to(x), after.alpha, after.sigma)
            yield Step(index, x, x0)
