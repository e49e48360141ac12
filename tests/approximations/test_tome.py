"""ToMe: which tokens are merged, into what, and what comes back."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latent_diffusion.approximations.tome import Cells, Merged, ToMe, means, merged_places
from latent_diffusion.diffusion.approximation import Scope
from latent_diffusion.errors import ConfigError
from latent_diffusion.families import sd1, sdxl, tiny
from latent_diffusion.models.unet import UNet
from latent_diffusion.nn.transformer import TransformerBlock
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

CPU = torch.device("cpu")
SIZES = [(8, 8), (5, 7), (1, 6), (1, 1), (2, 1)]


@pytest.fixture
def tokens():
    return torch.randn(2, 35, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_cell_has_one_destination(size):
    height, width = size
    cells = Cells.of(height, width, 500.0, CPU)
    together = torch.cat([cells.destinations, cells.others])
    assert torch.equal(together.sort().values, torch.arange(height * width))
    where = {(int(k) // width // 2, int(k) % width // 2) for k in cells.destinations}
    assert len(where) == len(cells.destinations) == -(-height // 2) * -(-width // 2)


def test_cells_are_a_function_of_place_and_noise_level():
    first, again, other = (Cells.of(16, 16, time, CPU) for time in (500.0, 500.0, 499.5))
    assert torch.equal(first.destinations, again.destinations) and torch.equal(first.others, again.others)
    assert not torch.equal(first.destinations, other.destinations)
    corners = torch.stack([Cells.of(16, 16, float(t), CPU).destinations for t in range(200)])
    shares = torch.stack([(corners // 16 % 2), corners % 2]).float().mean((1, 2))
    assert ((shares - 0.5).abs() < 0.02).all()  # rows and columns of a cell alike


def test_the_most_similar_are_merged_into_their_nearest(tokens):
    """Against the definition, token by token."""
    cells, count = Cells.of(5, 7, 3.0, CPU), 9
    places = merged_places(tokens, cells, count)
    for row, found in zip(tokens, places):
        unit = F.normalize(row, dim=-1)
        similar = unit @ unit[cells.destinations].T
        best = similar.max(-1)
        merged = sorted(cells.others.tolist(), key=lambda k: -best.values[k])[:count]
        for token in cells.others.tolist():
            mates = (found == found[token]).nonzero().flatten().tolist()
            if token in merged:
                assert int(cells.destinations[best.indices[token]]) in mates
            else:
                assert mates == [token]
        assert sorted(set(found.tolist())) == list(range(35 - count))


def test_means(tokens):
    places = merged_places(tokens, Cells.of(5, 7, 3.0, CPU), 12)
    found = means(tokens, places, 23)
    for row in range(2):
        for place in range(23):
            mean = tokens[row][places[row] == place].mean(0)
            assert torch.allclose(found[row, place], mean, atol=1e-6)


def test_equal_tokens_lose_nothing(tokens):
    """Where every cell holds four equal tokens, merging all of them and parting them again is exact."""
    rows = torch.randn(1, 16, 6, generator=torch.Generator().manual_seed(1)).unflatten(1, (4, 4))
    x = rows.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)  # 8 x 8
    layer = Merged(nn.Identity(), (8, 8), 48, {(8, 8): Cells.of(8, 8, 1.0, CPU)})
    assert torch.allclose(layer(x), x, atol=1e-6)


def test_the_order_of_equally_similar_tokens_shows_no_pattern():
    """A flat map: what is merged is spread over it, not its first rows."""
    cells = Cells.of(32, 32, 1.0, CPU)
    places = merged_places(torch.ones(1, 1024, 4), cells, 384)[0]
    alone = torch.bincount(places)[places] == 1
    shares = alone.view(4, 8, 32).float().mean((1, 2))
    assert (shares - shares.mean()).abs().max() < 0.08


@pytest.mark.parametrize("levels", [1, 2])
def test_only_self_attentions_of_the_wanted_levels(levels):
    unet = UNet(tiny.UNET).eval()
    twin, enter = ToMe(levels=levels).change(unet, Scope((), (9, 6), CPU))
    enter(ScaledLinearSchedule().level(500.0))
    blocks = {name: block.attn1 for name, block in twin.named_modules() if isinstance(block, TransformerBlock)}
    merged = {name: attn for name, attn in blocks.items() if isinstance(attn, Merged)}
    outside = ("down_blocks.0.", "up_blocks.1.")
    assert set(merged) == {name for name in blocks if levels == 2 or name.startswith(outside)}
    for name, layer in merged.items():
        size = (9, 6) if name.startswith(outside) else (5, 3)
        assert layer.size == size and layer.count == size[0] * size[1] // 2
    assert not any(isinstance(module, Merged) for module in unet.modules())


def test_fewer_operations():
    """Counted with attention in plain products: torch releases differ in the fused kernels their counter sees."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    unet = UNet(tiny.UNET).eval()
    twin, enter = ToMe(0.75).change(unet, Scope((), (16, 16), CPU))
    enter(ScaledLinearSchedule().level(500.0))
    seen = []
    for block in (unet.down_blocks[0], twin.down_blocks[0]):
        attention = block.attentions[0].transformer_blocks[0].attn1
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            attention(torch.randn(1, 256, 16))
        seen.append(counter.get_total_flops())
    assert seen[1] < 0.8 * seen[0]  # the matching is half of what is left at so few channels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 0.8}, "ratio 0.8 is not a number from 0 to 0.75"),
        ({"ratio": float("nan")}, "ratio nan"),
        ({"ratio": -0.1}, "ratio -0.1"),
        ({"levels": 0}, "levels 0 is not an integer from 1"),
    ],
    ids=str,
)
def test_numbers_that_cannot_be(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ToMe(**arguments)


def test_a_level_without_attention_is_said():
    with torch.device("meta"):
        base, large = UNet(sd1.UNET), UNet(sdxl.UNET)
    ToMe().check(base)
    ToMe(levels=2).check(large)
    with pytest.raises(ConfigError, match="its first that does is 2"):
        ToMe().check(large)
