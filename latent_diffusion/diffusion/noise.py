"""Noise for sampling: one independent stream per image, drawn on the CPU.

Image k of any batch gets the numbers that it would get alone, on any device. Drawn this way the noise equals what
diffusers draws when it is given one CPU generator per image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from latent_diffusion.errors import ConfigError
from latent_diffusion.randomness import MAX_SEED

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
        draws = [torch.randn((1, *shape), generator=g, device=g.device).cpu() for g in self._generators]
        return torch.cat(draws)


def _generator(seed: int) -> torch.Generator:
    if not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed {seed} is out of range; use 0 to {MAX_SEED}")
    return torch.Generator("cpu").manual_seed(seed)
