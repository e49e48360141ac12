"""Feature maps computed a band of rows at a time: what a layer needs of its input is a few rows more (the halo).

A map is either kept in memory or a recipe that computes any of its rows from another map. A recipe costs time each time
it is read and no memory; so a chain of layers takes the memory of the maps that are kept, whatever lies between them.
Bands are as wide as the map: only rows have halos, and padding at the sides is the convolution's own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Downsampled", "Kept", "Map", "NormedConv", "PlainConv", "Sum", "Upsampled", "bands", "keep"]

BAND = 2**22  # entries of a band of one map: 16 MiB in float32, a few of which are alive at once
FEWEST_ROWS = 8  # below it the halo costs more than the band saves


class Map(Protocol):
    """A feature map (B, C, H, W) that gives any of its rows."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """B, C, H, W."""
        ...

    def rows(self, top: int, bottom: int) -> Tensor:
        """Return rows top .. bottom - 1, all inside the map: (B, C, bottom - top, W)."""
        ...


@dataclass(frozen=True)
class Kept:
    """A map that lies in memory."""

    values: Tensor  # (B, C, H, W)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """B, C, H, W."""
        batch, channels, height, width = self.values.shape
        return batch, channels, height, width

    def rows(self, top: int, bottom: int) -> Tensor:
        """Return a view of the rows."""
        return self.values[:, :, top:bottom]


class PlainConv:
    """A 3x3 convolution."""

    def __init__(self, source: Map, conv: nn.Conv2d, before: Callable[[Tensor], Tensor] | None = None) -> None:
        """Convolve `source`, after `before` was applied to it value by value."""
        batch, _, height, width = source.shape
        self.source, self.conv, self.before = source, conv, before
        self.shape = batch, conv.out_channels, height, width

    def rows(self, top: int, bottom: int) -> Tensor:
        """Return the rows; one row more of the source on either side, zeros beyond its edge."""
        height = self.shape[2]
        x = self.source.rows(max(top - 1, 0), min(bottom + 1, height))
        if self.before is not None:
            x = self.before(x)
        x = F.pad(x, (0, 0, int(top == 0), int(bottom == height)))
        return F.conv2d(x, self.conv.weight, self.conv.bias, padding=(0, 1))


class NormedConv(PlainConv):
    """GroupNorm with the statistics of the whole map, SiLU, 3x3 convolution."""

    def __init__(self, source: Map, norm: nn.GroupNorm, conv: nn.Conv2d) -> None:
        """Read `source` once for the statistics; its rows are read again when rows of this are."""
        normalise = whole_norm(source, norm)
        super().__init__(source, conv, lambda x: F.silu(normalise(x), inplace=True))


class Upsampled:
    """Every value repeated twice in both directions, then a 3x3 convolution."""

    def __init__(self, source: Map, conv: nn.Conv2d) -> None:
        batch, _, height, width = source.shape
        self.source, self.conv = source, conv
        self.shape = batch, conv.out_channels, 2 * height, 2 * width

    def rows(self, top: int, bottom: int) -> Tensor:
        """Return the rows; the source's rows that hold top - 1 .. bottom."""
        height = self.shape[2]
        first, last = max(top - 1, 0), min(bottom + 1, height)
        x = self.source.rows(first // 2, (last + 1) // 2)
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")[:, :, first % 2 :][:, :, : last - first]
        x = F.pad(x, (0, 0, int(top == 0), int(bottom == height)))
        return F.conv2d(x, self.conv.weight, self.conv.bias, padding=(0, 1))


class Downsampled:
    """A 3x3 convolution of stride 2 after a column of zeros on the right and a row of them below."""

    def __init__(self, source: Map, conv: nn.Conv2d) -> None:
        batch, _, height, width = source.shape
        self.source, self.conv = source, conv
        self.shape = batch, conv.out_channels, height // 2, width // 2

    def rows(self, top: int, bottom: int) -> Tensor:
        """Return the rows; rows 2 top .. 2 bottom of the source."""
        height = self.source.shape[2]
        last = min(2 * bottom + 1, height)
        x = F.pad(self.source.rows(2 * top, last), (0, 1, 0, 2 * bottom + 1 - last))
        return F.conv2d(x, self.conv.weight, self.conv.bias, stride=2)


@dataclass(frozen=True)
class Sum:
    """A map plus another, which a 1x1 convolution may bring to its channels."""

    one: Map
    other: Map
    shortcut: nn.Conv2d | None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """B, C, H, W."""
        return self.one.shape

    def rows(self, top: int, bottom: int) -> Tensor:
        """Return the rows: a row of the sum needs no other row of either."""
        other = self.other.rows(top, bottom)
        return self.one.rows(top, bottom) + (other if self.shortcut is None else self.shortcut(other))


def bands(shape: tuple[int, int, int, int]) -> Iterator[tuple[int, int]]:
    """Yield first and last + 1 of the rows of each band of a map, top to bottom."""
    batch, channels, height, width = shape
    step = max(FEWEST_ROWS, BAND // (batch * channels * width))
    for top in range(0, height, step):
        yield top, min(top + step, height)


def keep(source: Map, into: Tensor | None = None) -> Kept:
    """Compute `source` band by band; `into` (B, C, H, W) is overwritten with it where given."""
    values = into
    for top, bottom in bands(source.shape):
        rows = source.rows(top, bottom)
        if values is None:
            values = rows.new_empty(source.shape)
        values[:, :, top:bottom] = rows
    assert values is not None, "a map has rows"
    return Kept(values)


def whole_norm(source: Map, norm: nn.GroupNorm) -> Callable[[Tensor], Tensor]:
    """Return `norm` with the mean and variance of all of `source`, as a function of any rows of it.

    Those of the bands are joined in float64: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm
    for computing sample variances", eq. (2.1).
    """
    batch, channels, _, _ = source.shape
    groups = norm.num_groups
    count, mean = 0, torch.zeros((), dtype=torch.float32)
    spread = torch.zeros((), dtype=torch.float32)  # sum of squared deviations, (B, groups)
    for top, bottom in bands(source.shape):
        band = source.rows(top, bottom).reshape(batch, groups, -1)
        variance, average = (m.double() for m in torch.var_mean(_wide(band), dim=-1, correction=0))
        fresh, total = band.shape[-1], count + band.shape[-1]
        step = average - mean.to(average)
        mean = mean.to(average) + step * (fresh / total)
        spread = spread.to(average) + variance * fresh + step.square() * (count * fresh / total)
        count = total
    deviation = (spread / count + norm.eps).rsqrt()
    mean, deviation = (m.repeat_interleave(channels // groups, dim=1)[:, :, None, None] for m in (mean, deviation))
    scale = deviation * norm.weight.double()[:, None, None]  # (B, C, 1, 1)
    shift = norm.bias.double()[:, None, None] - mean * scale
    return lambda x: torch.addcmul(shift.to(_wide(x)), _wide(x), scale.to(_wide(x))).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    """Return `x` in the format that norms compute in: float32 for half precision, else its own."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
