"""Normalising flow: an invertible network maps pictures to noise, so the density is known exactly.

    log p(x) = log N(f(x); 0, I) + log |det df/dx|

f is a chain of steps whose inverse and determinant are cheap: a scale and shift of each channel, an invertible mixing
of the channels, and a coupling, in which one half of the channels is scaled and shifted by what a network reads from
the other half. Half of the channels leave after each level, as noise around what the rest predicts.

Reference: Dinh et al. 2017, arXiv:1605.08803, eq. 7 and 8; Kingma & Dhariwal 2018, arXiv:1807.03039, table 1.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.science.families.blocks import fold, unfold
from experiments.science.families.family import Draws, Family, bits, in_batches
from latent_diffusion.randomness import normal

__all__ = ["Coupling", "Flow", "Mixing", "Scaling", "Split"]

HIDDEN = (96, 112, 144)  # channels of the couplings' networks at 16, 8 and 4 px
STEPS = 6  # of a level
MOST = 2.0  # of a coupling's log-scale


class Scaling(nn.Module):
    """y = exp(s) x + b for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y, and log |det| (B,)."""
        places = x.shape[2] * x.shape[3]
        return x * self.log_scale.exp() + self.shift, places * self.log_scale.sum().expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        """Return x."""
        return (y - self.shift) * (-self.log_scale).exp()


class Mixing(nn.Module):
    """y = W x at each place: a 1x1 convolution that can be inverted; W begins as a random rotation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels))[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y, and log |det| (B,)."""
        places = x.shape[2] * x.shape[3]
        return F.conv2d(x, self.weight[..., None, None]), places * torch.linalg.slogdet(self.weight)[1].expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        """Return x."""
        return F.conv2d(y, torch.linalg.inv(self.weight)[..., None, None])


class Coupling(nn.Module):
    """One half stays and decides scale and shift of the other: (a, b) -> (a, exp(s(a)) (b + t(a)))."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        last = nn.Conv2d(hidden, channels, 3, padding=1)
        nn.init.zeros_(last.weight)  # at first the coupling changes nothing
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(
            nn.Conv2d(channels // 2, hidden, 3, padding=1), nn.SiLU(), nn.Conv2d(hidden, hidden, 1), nn.SiLU(), last
        )

    def _of(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.network(kept).chunk(2, 1)
        return MOST * torch.tanh(raw / MOST), shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y, and log |det| (B,)."""
        kept, changed = x.chunk(2, 1)
        log_scale, shift = self._of(kept)
        return torch.cat([kept, (changed + shift) * log_scale.exp()], 1), log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        """Return x."""
        kept, changed = y.chunk(2, 1)
        log_scale, shift = self._of(kept)
        return torch.cat([kept, changed * (-log_scale).exp() - shift], 1)


class Split(nn.Module):
    """Half of the channels leaves as noise: (b - mean(a)) / std(a), where a is the half that goes on."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.predict = nn.Conv2d(channels // 2, channels, 3, padding=1)
        nn.init.zeros_(self.predict.weight)
        assert self.predict.bias is not None
        nn.init.zeros_(self.predict.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what goes on, the noise, and log |det| (B,)."""
        kept, leaving = x.chunk(2, 1)
        mean, log_std = self.predict(kept).chunk(2, 1)
        return kept, (leaving - mean) * (-log_std).exp(), -log_std.flatten(1).sum(1)

    def inverse(self, kept: Tensor, noise: Tensor) -> Tensor:
        """Return x."""
        mean, log_std = self.predict(kept).chunk(2, 1)
        return torch.cat([kept, mean + log_std.exp() * noise], 1)


class Flow(Family):
    """Levels of steps, with a split and a fold of 2 x 2 places between them."""

    draws_of_bits = 1  # they are exact

    def __init__(self, hidden: Sequence[int] = HIDDEN, steps: int = STEPS, channels: int = 12) -> None:
        super().__init__()
        self.levels, self.splits = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(hidden):
            if level:
                self.splits.append(Split(channels))
                channels *= 2
            parts = [
                part for _ in range(steps) for part in (Scaling(channels), Mixing(channels), Coupling(channels, width))
            ]
            self.levels.append(nn.ModuleList([*parts, Scaling(channels)]))

    def to_noise(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return f(x) in the parts that left, the last level's at the end, and log |det| (B,), of pictures x."""
        return self.forward_folded(fold(x))

    def forward_folded(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the same of x (B, channels, h, w)."""
        left, total = list[Tensor](), torch.zeros(len(x), dtype=x.dtype)
        for number, level in enumerate(self.levels):
            if number:
                x, noise, change = self.splits[number - 1](x)
                left.append(noise)
                x, total = F.pixel_unshuffle(x, 2), total + change
            assert isinstance(level, nn.ModuleList)
            for part in level:
                x, change = part(x)
                total = total + change
        return [*left, x], total

    def to_pictures(self, noise: Sequence[Tensor]) -> Tensor:
        """Return the inverse of `to_noise`."""
        return unfold(self.inverse_folded(noise))

    def inverse_folded(self, noise: Sequence[Tensor]) -> Tensor:
        """Return the inverse of `forward_folded`."""
        x = noise[-1]
        for number in reversed(range(len(self.levels))):
            level = self.levels[number]
            assert isinstance(level, nn.ModuleList)
            for part in reversed(level):
                assert isinstance(part, Scaling | Mixing | Coupling)
                x = part.inverse(x)
            if number:
                split = self.splits[number - 1]
                assert isinstance(split, Split)
                x = split.inverse(F.pixel_shuffle(x, 2), noise[number - 1])
        return x

    def log_density(self, x: Tensor) -> Tensor:
        """Return log p(x), (B,) nats, exact."""
        noise, total = self.to_noise(x)
        for part in noise:
            total = total - 0.5 * (part.square() + math.log(2 * math.pi)).flatten(1).sum(1)
        return total

    def loss(self, player: str, x: Tensor, draws: Draws) -> Tensor:
        """Return the mean bits a number."""
        return bits(-self.log_density(x)).mean()

    def sample(self, count: int, seed: int, temperature: float = 1.0) -> Tensor:
        """Return pictures of noise of that standard deviation; 1 draws from the density, less from its middle."""
        shapes = [part.shape[1:] for part in self.to_noise(torch.zeros(1, 3, 32, 32))[0]]
        done, drawn = 0, list[Tensor]()
        for size in in_batches(count):
            rows = range(done, done + size)
            noise = [temperature * normal(seed, f"sample {n}", rows, shape) for n, shape in enumerate(shapes)]
            drawn.append(self.to_pictures(noise))
            done += size
        return torch.cat(drawn)

    def bits_per_dimension(self, x: Tensor, draws: Draws) -> Tensor:
        """Return the exact bits of the spread pictures."""
        return bits(-self.log_density(x))
