"""Noise for sampling: one independent stream per image, drawn on the CPU.

Image k of any batch gets the numbers that it would get alone, on any device. Drawn this way the noise equals what
diffusers draws when it is given one CPU generator per image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from latent_diffusion.checks import MAX_SEED
from latent_diffusion.diffusion.slerp import slerp
from latent_diffusion.errors import ConfigError

__all__ = ["NoiseSource"]


class NoiseSource:
    """Standard normal noise for a batch, from one `torch.Generator` per image."""

    def __init__(self, seeds: Sequence[int | torch.Generator]) -> None:
        """Take one seed (0 .. 2^32 - 1) or one generator per image.

        Raises:
            ConfigError: a seed is outside its range, or there is none.
        """
        if not seeds:
            raise ConfigError("noise needs at least one seed or generator, one per image")
        self._generators = [s if isinstance(s, torch.Generator) else _generator(s) for s in seeds]
        self._other: NoiseSource | None = None
        self._shares: Sequence[float] = ()

    def towards(self, other: "NoiseSource", shares: Sequence[float]) -> "NoiseSource":
        """Return noise between this source and `other`: every draw is that share of the way from one to the other.

        Share 0 gives this source's pictures and share 1 the other's, whatever the sampler draws. All three sources
        have the same generators from here on, so draw from the result only.

        Args:
            other: of as many images.
            shares: 0 .. 1, one an image.

        Raises:
            ConfigError: sources or shares of unequal number.
        """
        if not len(self) == len(other) == len(shares):
            raise ConfigError(f"{len(self)} and {len(other)} noise streams cannot be mixed at {len(shares)} shares")
        mixed = NoiseSource(self._generators)
        mixed._other, mixed._shares = other, tuple(shares)
        return mixed

    def __len__(self) -> int:
        """Number of images B."""
        return len(self._generators)

    def draw(self, shape: Sequence[int]) -> Tensor:
        """Draw the next noise of every image.

        Args:
            shape: shape of one image, (C, h, w).

        Returns:
            float32 (B, C, h, w) on the CPU, standard normal.
        """
        draws = [torch.randn((1, *shape), generator=g, dtype=torch.float32, device=g.device) for g in self._generators]
        drawn = torch.cat([draw.cpu() for draw in draws])
        return drawn if self._other is None else slerp(drawn, self._other.draw(shape), self._shares)


def _generator(seed: int) -> torch.Generator:
    if not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed {seed} is out of range; use 0 to {MAX_SEED}")
    return torch.Generator("cpu").manual_seed(seed)
