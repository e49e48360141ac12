"""DeepCache: the deep layers of the U-Net, which change little from step to step, are run once every few steps.

A U-Net is an outer U-Net whose middle is all the rest of it:

    down 0 .. branch  ->  [ all other layers down, the middle, all other layers up ]  ->  up branch + 1 .. 0

In the first step of every `interval` all of it runs, and what the bracket gives is kept; in the others only the outer
layers do, with what was kept. Steps are told by their noise levels, not by counting calls: samplers that look ahead or
go back, and guidances that are off for a while, each find what belongs to where they are, or have it computed.
Reference: Ma et al. 2023, arXiv:2312.00858, section 3.3, uniform interval.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from latent_diffusion.checks import check_integer
from latent_diffusion.diffusion.approximation import Approximation, Enter, Scope
from latent_diffusion.diffusion.denoiser import Network
from latent_diffusion.diffusion.level import Level
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.unet import DownLevel, UNet, UpLevel
from latent_diffusion.nn.attention import KeysValues
from latent_diffusion.nn.shared_copy import shared_copy
from latent_diffusion.nn.transformer import TransformerBlock

__all__ = ["DeepCache", "Kept", "split"]

MOST = 1000  # steps of one interval; more than a path has


@dataclass(frozen=True)
class DeepCache(Approximation):
    """The deep layers once in `interval` steps; interval 1 is exact."""

    neutral: ClassVar[Mapping[str, Any]] = {"interval": 1}

    place: ClassVar[int] = 1  # cuts the U-Net up, so after those that look for its layers

    interval: int = 3  # steps for which what the deep layers gave is used, the one they run in included
    branch: int = 0  # last layer of the way down that runs in every step, 0 being the outermost

    def __post_init__(self) -> None:
        for name, value, least in (("interval", self.interval, 1), ("branch", self.branch, 0)):
            check_integer(f"deepcache: {name}", value, least, MOST)

    def check(self, network: Network) -> None:
        """Refuse a U-Net without so many layers.

        Raises:
            ConfigError: naming the most it has.
        """
        assert isinstance(network, UNet), "a model's network is a U-Net"
        most = sum(_units(level) for level in network.down_blocks)
        if self.branch >= most:
            raise ConfigError(f"deepcache: branch {self.branch}; this U-Net has {most} layers on its way down, from 0")

    def change(self, network: Network, scope: Scope) -> tuple[Network, Enter | None]:
        """Return the U-Net with its deep layers kept between steps, and what lets go of them in time."""
        if self.interval == 1 or not isinstance(network, UNet):  # seg's blurred prediction stays exact
            return network, None
        outer, deep = split(network, self.branch + 1)
        starts = [level.log_snr for level in scope.levels[self.interval : -1 : self.interval]]
        last: Level | None = None

        def enter(level: Level) -> None:
            nonlocal last
            stretch = (bisect_right(starts, at.log_snr) for at in (level, last or level))
            if last is None or len(set(stretch)) > 1 or level.log_snr < last.log_snr:  # back to more noise: another x
                deep.output = None
            last = level

        return outer, enter


class Kept(nn.Module):
    """The inside of a U-Net as the middle of its outside; runs where nothing is kept."""

    def __init__(self, down: Sequence[nn.Module], middle: nn.Module, up: Sequence[nn.Module]) -> None:
        """Take the levels inside, which nobody else holds."""
        super().__init__()
        self.down, self.middle, self.up = nn.ModuleList(down), middle, nn.ModuleList(up)
        self.pairs = sum(isinstance(module, TransformerBlock) for module in self.modules())
        self.output: Tensor | None = None  # of the last run; None = run

    def forward(self, x: Tensor, time: Tensor, context: Iterator[KeysValues]) -> Tensor:
        """Map `x` (B, C, H, W) to (B, C', H, W), or return what that was; takes its keys and values from `context`."""
        if self.output is not None:
            for _ in range(self.pairs):
                next(context)
            return self.output
        skips = [x]  # its size is what the last level inside grows to; the level outside takes it itself
        for level in self.down:
            x = level(x, time, context, skips)
        x = self.middle(x, time, context)
        for level in self.up:
            x = level(x, time, context, skips)
        self.output = x
        return x


def split(unet: UNet, layers: int) -> tuple[UNet, Kept]:
    """Return the U-Net as an outer one of `layers` layers down and one more up, and its middle, which is the rest.

    Weights are shared, modules are new; `unet` stays as it is. Nothing kept, it computes what `unet` does, bit for bit.
    """
    outer = shared_copy(unet)
    down, down_inside = _cut(list(outer.down_blocks), layers)
    up_inside, up = _cut(list(outer.up_blocks), sum(map(_units, outer.up_blocks)) - layers - 1)
    deep = Kept(down_inside, outer.mid_block, up_inside)
    outer.down_blocks, outer.up_blocks = nn.ModuleList(down), nn.ModuleList(up)
    outer.add_module("mid_block", deep)
    return outer, deep


def _cut(levels: Sequence[nn.Module], count: int) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the first `count` layers of these levels and the others, as levels."""
    first: list[nn.Module] = []
    second: list[nn.Module] = []
    for level in levels:
        here, every = min(count, _units(level)), _units(level)
        count -= here
        first += _piece(level, 0, here)
        second += _piece(level, here, every)
    return first, second


def _units(level: nn.Module) -> int:
    """Return how many skips a level gives or takes: one a residual block, on the way down one for the smaller size."""
    assert isinstance(level, DownLevel | UpLevel), "the U-Net's levels are these"
    return len(level.resnets) + (len(level.downsamplers) if isinstance(level, DownLevel) else 0)


def _piece(level: nn.Module, start: int, stop: int) -> list[nn.Module]:
    """Return the layers from `start` to before `stop` as a level; none where there are none."""
    if start == stop:
        return []
    part = shared_copy(level)
    assert isinstance(part, DownLevel | UpLevel), "the U-Net's levels are these"
    part.resnets, part.attentions = part.resnets[start:stop], part.attentions[start:stop]
    if stop < _units(level):  # another size comes with the last layer
        name = "downsamplers" if isinstance(part, DownLevel) else "upsamplers"
        setattr(part, name, nn.ModuleList())
    return [part]
