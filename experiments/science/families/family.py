"""What the five families have in common: the interface of a family, its keyed draws, and the unit of likelihood.

A picture is (3, 32, 32) with 32 values a channel (5 bits). It is spread over [-1, 1) by uniform noise within each
value's interval, so that a density of real numbers bounds the probability of the picture (Theis et al. 2016,
arXiv:1511.01844, section 3.1): every family models that density, and their bits can be compared.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.randomness import generator, normal

__all__ = [
    "SHAPE",
    "VALUES",
    "Draws",
    "Family",
    "bits",
    "drawn_in_batches",
    "in_batches",
    "spread",
    "spread_values",
    "to_values",
]

SHAPE = (3, 32, 32)
VALUES = 32  # of a channel


@dataclass(frozen=True)
class Draws:
    """The random numbers of one batch; each depends on the seed, the purpose and the sample's number alone."""

    seed: int
    update: int  # number of updates before this one
    first: int  # number of samples before this batch

    def normal(self, purpose: str, like: Tensor) -> Tensor:
        """Return standard normal noise shaped as `like` (B, ...)."""
        return normal(self.seed, purpose, range(self.first, self.first + len(like)), like.shape[1:]).to(like)

    def uniform(self, purpose: str, like: Tensor) -> Tensor:
        """Return numbers in [0, 1) shaped as `like` (B, ...)."""
        keys = range(self.first, self.first + len(like))
        rows = [generator(self.seed, purpose, k).random(tuple(like.shape[1:]), dtype=np.float32) for k in keys]
        return torch.from_numpy(np.stack(rows)).to(like)


class Family(nn.Module, ABC):
    """A way to learn a distribution of pictures (B, 3, 32, 32), spread over [-1, 1)."""

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)  # of Adam
    draws_of_bits: int = 8  # estimates of a picture's bits that are averaged

    def players(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """Return the weights of each player; each has a loss of its own, and they take turns."""
        return {"model": list(self.parameters())}

    def rate(self, player: str) -> float:
        """Return the learning rate of a player."""
        return self.learning_rate

    @abstractmethod
    def loss(self, player: str, x: Tensor, draws: Draws) -> Tensor:
        """Return what the player minimises over the pictures x (B, 3, 32, 32): a scalar."""

    @abstractmethod
    def sample(self, count: int, seed: int) -> Tensor:
        """Return `count` pictures (count, 3, 32, 32), about -1..1."""

    def bits_per_dimension(self, x: Tensor, draws: Draws) -> Tensor | None:
        """Return bits for each of 3,072 numbers of the pictures x, (B,): exact or an upper bound; None = undefined."""
        return None


def bits(nats: Tensor) -> Tensor:
    """Return -log p (B,) of spread pictures in nats as bits a number of a picture of 32 values a channel."""
    return nats / (math.prod(SHAPE) * math.log(2)) + math.log2(VALUES / 2)


def spread(values: Tensor, noise: Tensor) -> Tensor:
    """Return x in [-1, 1): values (B, 3, 32, 32), 0..31, with noise in [0, 1) within each."""
    return (values + noise) * (2 / VALUES) - 1


def spread_values(values: Tensor, draws: Draws) -> Tensor:
    """Return values (B, 3, 32, 32), uint8, in [-1, 1), with the noise of a batch's draws."""
    return spread(values.float(), draws.uniform("spread", values.float()))


def to_values(images: Tensor) -> Tensor:
    """Return the values 0..31, uint8, of images in [-1, 1]."""
    return ((images + 1) * (VALUES / 2)).floor().clamp(0, VALUES - 1).to(torch.uint8)


def in_batches(count: int, size: int = 64) -> Iterator[int]:
    """Yield the sizes of the batches of `count` pictures."""
    for start in range(0, count, size):
        yield min(size, count - start)


def drawn_in_batches(count: int, seed: int, draw: Callable[[NoiseSource], Tensor]) -> Tensor:
    """Return `count` drawings, of which `draw` makes a batch from its noise; the seeds are those of any batch size."""
    parts, done = list[Tensor](), 0
    for size in in_batches(count):
        parts.append(draw(NoiseSource([seed * 100_000 + k for k in range(done, done + size)])))
        done += size
    return torch.cat(parts)
