"""ToMe: self-attention over fewer tokens, those that are most alike merged into one.

Of every cell of 2 x 2 tokens one is a destination. Of all others, each is told its most similar destination; the
`ratio` of all tokens that are most similar to theirs are merged into it, as a mean, before the attention, and take its
answer afterwards. Which token of a cell is the destination changes from step to step, as in the paper; it is a fixed
function of place and noise level, and nothing is drawn, so that a seed means one picture in any batch.
Reference: Bolya & Hoffman 2023, arXiv:2303.17604, section 4; bipartite matching: Bolya et al. 2022, arXiv:2210.09461,
section 3. Similarity is here that of the tokens as the attention reads them, after their norm.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_diffusion.checks import check_integer, check_number
from latent_diffusion.diffusion.approximation import Approximation, Enter, Scope
from latent_diffusion.diffusion.denoiser import Network
from latent_diffusion.diffusion.level import Level
from latent_diffusion.errors import ConfigError
from latent_diffusion.models.unet import UNet
from latent_diffusion.nn.attention import KeysValues
from latent_diffusion.nn.shared_copy import shared_copy
from latent_diffusion.nn.transformer import TransformerBlock

__all__ = ["ToMe", "means", "merged_places"]

Size = tuple[int, int]
"""Height and width of a map, in tokens."""

MOST = 0.75  # share of tokens that are no destinations
MOST_LEVELS = 1000  # more than any U-Net has


@dataclass(frozen=True)
class ToMe(Approximation):
    """Merged tokens in the self-attentions on the largest maps; ratio 0 is exact."""

    neutral: ClassVar[Mapping[str, Any]] = {"ratio": 0.0}

    ratio: float = 0.5  # share of the tokens that are merged away
    levels: int = 1  # of the U-Net, from the outside: the maps of each further level have a quarter of the tokens

    def __post_init__(self) -> None:
        check_number("tome: ratio", self.ratio, MOST)
        check_integer("tome: levels", self.levels, 1, MOST_LEVELS)

    def check(self, network: Network) -> None:
        """Refuse a U-Net that does not attend on so large maps.

        Raises:
            ConfigError: naming the first level that does.
        """
        assert isinstance(network, UNet), "a model's network is a U-Net"
        attending = [level for level in range(len(network.down_blocks)) if _blocks(network, level)]
        if not attending or attending[0] >= self.levels:
            wanted = f"; its first that does is {attending[0] + 1}" if attending else ""
            raise ConfigError(f"tome: levels {self.levels}: no level of this U-Net up to there has attention{wanted}")

    def change(self, network: Network, scope: Scope) -> tuple[Network, Enter | None]:
        """Return the U-Net with merged tokens in its self-attentions."""
        if not self.ratio or not isinstance(network, UNet):  # seg's blurred prediction stays exact
            return network, None
        twin = shared_copy(network)
        height, width = scope.size
        sizes: list[Size] = []
        now: dict[Size, Cells] = {}  # of the step that is made; copies of the modules share it
        for level in range(min(self.levels, len(twin.down_blocks))):
            for block in _blocks(twin, level):
                block.add_module("attn1", Merged(block.attn1, (height, width), int(self.ratio * height * width), now))
            sizes.append((height, width))
            height, width = (height + 1) // 2, (width + 1) // 2

        def enter(level: Level) -> None:
            now.update({size: Cells.of(*size, level.t, scope.device) for size in sizes})

        return twin, enter


def _blocks(unet: UNet, level: int) -> list[TransformerBlock]:
    """Return the transformer blocks that work on the maps of a level; the middle's maps are those of the last."""
    sides = [unet.down_blocks[level], unet.up_blocks[-1 - level]]
    sides += [unet.mid_block] if level == len(unet.down_blocks) - 1 else []
    return [module for side in sides for module in side.modules() if isinstance(module, TransformerBlock)]


@dataclass(frozen=True)
class Cells:
    """Which tokens of a map, row by row, are destinations; D of them, and S others in an order without pattern."""

    destinations: Tensor  # (D,) int64
    others: Tensor  # (S,) int64

    @classmethod
    def of(cls, height: int, width: int, time: float, device: torch.device) -> "Cells":
        """Choose, for a training time, one token of every 2 x 2, or of what is left of it at an odd edge."""
        start = _hash(torch.tensor(round(time * 1000) + 1000))  # the least time is -1
        rows, columns = torch.meshgrid(torch.arange(0, height, 2), torch.arange(0, width, 2), indexing="ij")
        draw = _hash(rows * width + columns + start)
        rows = (rows + draw % 2).clamp(max=height - 1)
        columns = (columns + draw // 2 % 2).clamp(max=width - 1)
        chosen = (rows * width + columns).flatten()
        rest = torch.ones(height * width, dtype=torch.bool)
        rest[chosen] = False
        others = rest.nonzero().flatten()
        others = others[_hash(others + start).argsort(stable=True)]  # equally similar ones are merged in this order
        return cls(chosen.to(device), others.to(device))


def _hash(places: Tensor) -> Tensor:
    """Return numbers from 0 to 2^24 - 1 that show no pattern over int64 `places` below 2^31.

    Multiplicative hashing, twice: Knuth 1998, The Art of Computer Programming, volume 3, section 6.4.
    """
    once = (places + 1) * 2654435761 % 2**32
    return (once ^ (once >> 15)) * 2246822519 % 2**32 >> 8


class Merged(nn.Module):
    """A self-attention over merged tokens."""

    def __init__(self, attention: nn.Module, size: Size, count: int, now: Mapping[Size, Cells]) -> None:
        """Merge `count` tokens of maps of this `size` by the cells in `now`, before `attention`; part them after it."""
        super().__init__()
        self.attention, self.size, self.count, self.now = attention, size, count, now

    def forward(self, x: Tensor, keys_values: KeysValues | None = None) -> Tensor:
        """Map tokens `x` (B, L, D) to the same shape."""
        assert keys_values is None, "only self-attentions are merged"
        cells = self.now[self.size]
        count = min(self.count, len(cells.others))
        places = merged_places(x, cells, count)
        answers = self.attention(means(x, places, x.shape[1] - count))
        return answers.gather(1, places[..., None].expand_as(x))


def merged_places(x: Tensor, cells: Cells, count: int) -> Tensor:
    """Return which of L - `count` tokens each of the tokens `x` (B, L, D) becomes part of: (B, L) int64.

    First come those that stay alone, then the destinations.
    """
    targets, others = x[:, cells.destinations], x[:, cells.others]
    similar = F.normalize(others, dim=-1) @ F.normalize(targets, dim=-1).transpose(1, 2)  # (B, S, D)
    best, nearest = similar.max(dim=-1)  # (B, S)
    order = best.argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1], device=x.device).expand_as(order))
    alone = order.shape[1] - count
    places = rank.new_empty(x.shape[:2])
    places[:, cells.destinations] = alone + torch.arange(targets.shape[1], device=x.device)
    places[:, cells.others] = torch.where(rank < count, alone + nearest, rank - count)
    return places


def means(x: Tensor, places: Tensor, length: int) -> Tensor:
    """Return (B, length, D): at each place the mean of the tokens of `x` (B, L, D) whose `places` (B, L) it is."""
    batch, _, width = x.shape
    rows = (places + length * torch.arange(batch, device=x.device)[:, None]).flatten()
    tokens = F.pad(x.float(), (0, 1), value=1.0).flatten(0, 1)  # and a one, to count them
    sums = tokens.new_zeros(batch * length, width + 1)
    sums.index_put_((rows,), tokens, accumulate=True)  # sums in one order, also on a GPU
    return (sums[:, :-1] / sums[:, -1:]).to(x.dtype).unflatten(0, (batch, length))
