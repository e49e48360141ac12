"""DeepCache: the split U-Net is the U-Net, and the deep layers run when they should."""

import pytest
import torch

from latent_diffusion.approximations.deepcache import DeepCache, Kept, split
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.approximation import Scope
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.errors import ConfigError
from latent_diffusion.families import emoji, sd1, sdxl, tiny
from latent_diffusion.models.unet import UNet
from latent_diffusion.registry import find
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

SCHEDULE = ScaledLinearSchedule()
LEVELS = [SCHEDULE.level(t, k) for k, t in enumerate((999.0, 850.0, 700.0, 550.0, 400.0, 250.0, 100.0, -1.0))]


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet(tiny.UNET).eval()


@pytest.fixture
def given(unet):
    generator = torch.Generator().manual_seed(0)
    cond = Conditioning(torch.randn(2, 5, 32, generator=generator))
    return torch.randn(2, 4, 7, 5, generator=generator), torch.tensor([5.0, 900.0]), cond


def depth(unet):
    return sum(len(level.resnets) + len(level.downsamplers) for level in unet.down_blocks)


@torch.no_grad()
def test_split_anywhere_it_is_the_same_network_bit_for_bit(unet, given):
    x, t, cond = given
    wanted, projected = unet(x, t, unet.project(cond)), unet.project(cond)
    for layers in range(depth(unet) + 1):
        outer, deep = split(unet, layers)
        for pair, other in zip(outer.project(cond).keys_values, projected.keys_values, strict=True):
            assert all(map(torch.equal, pair, other))  # cross-attentions are still found in the order they run in
        assert torch.equal(outer(x, t, projected), wanted)
        assert deep.output is not None
        assert torch.equal(outer(x, t, projected), wanted)  # with what was kept
        assert {id(p) for p in outer.parameters()} == {id(p) for p in unet.parameters()}


@torch.no_grad()
def test_shares_of_the_work():
    """A step in between costs 22 % of the operations of Stable Diffusion 1 with branch 0."""
    from torch.utils.flop_counter import FlopCounterMode

    def count(call):
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    with torch.device("meta"):
        unet, x, t = UNet(sd1.UNET), torch.randn(1, 4, 64, 64), torch.zeros(1)
        projected = unet.project(Conditioning(torch.randn(1, 77, 768)))
    outer, _ = split(unet, 1)
    whole = count(lambda: outer(x, t, projected))
    assert 0.21 < count(lambda: outer(x, t, projected)) / whole < 0.24


@pytest.mark.parametrize(("family", "most"), [(sd1, 11), (sdxl, 8), (emoji, 5)], ids=["sd1", "sdxl", "emoji"])
def test_the_deepest_branch(family, most):
    with torch.device("meta"):
        unet = UNet(family.UNET)
    DeepCache(branch=most - 1).check(unet)
    with pytest.raises(ConfigError, match=f"this U-Net has {most} layers on its way down, from 0"):
        DeepCache(branch=most).check(unet)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": 0}, "interval 0 is not an integer from 1"),
        ({"interval": 2.5}, "interval 2.5 is not"),
        ({"branch": -1}, "branch -1 is not an integer from 0"),
        ({"interval": True}, "interval True is not"),
    ],
    ids=str,
)
def test_numbers_that_cannot_be(arguments, message):
    with pytest.raises(ConfigError, match=message):
        DeepCache(**arguments)


def runs(unet, interval, visited, levels=LEVELS):
    """Return for each visited level whether the deep layers ran."""
    outer, enter = DeepCache(interval).change(unet, Scope(levels, (8, 8), torch.device("cpu")))
    deep = outer.mid_block
    assert isinstance(deep, Kept)
    ran = []
    for level in visited:
        enter(level)
        ran.append(deep.output is None)
        deep.output = torch.zeros(1)
    return ran


def test_once_in_every_interval(unet):
    assert runs(unet, 3, LEVELS[:-1]) == [True, False, False, True, False, False, True]
    assert runs(unet, 100, LEVELS[:-1]) == [True] + [False] * 6


def test_a_sampler_that_looks_ahead_finds_what_it_kept_there(unet):
    heun = [LEVELS[k] for k in (0, 1, 1, 2, 2, 3, 3, 4)]
    assert runs(unet, 2, heun) == [True, False, False, True, False, False, False, True]
    between = SCHEDULE.level_at((LEVELS[1].log_snr + LEVELS[2].log_snr) / 2)
    assert runs(unet, 2, [LEVELS[0], LEVELS[1], between, LEVELS[2]]) == [True, False, False, True]


def test_after_going_back_to_more_noise_nothing_old_is_used(unet):
    assert runs(unet, 4, [LEVELS[k] for k in (0, 1, 2, 1, 2, 0)]) == [
        True,
        False,
        False,
        True,
        False,
        True,
    ]


def test_first_met_in_the_middle_of_an_interval_it_runs(unet):
    """As where guidance comes on late and another batch is bound."""
    assert runs(unet, 3, LEVELS[2:6]) == [True, True, False, False]


@pytest.mark.parametrize("name", ["heun", "dpm2", "dpmpp_sde", "restart", "pndm", "unipc"])
@torch.no_grad()
def test_every_kind_of_sampler(unet, given, name):
    """With the deep layers kept for no longer than a step, samplers of two calls a step stay near their exact path."""
    from latent_diffusion.diffusion.approximation import approximated
    from latent_diffusion.diffusion.denoiser import Denoiser
    from latent_diffusion.diffusion.prediction import EPSILON

    x, _, cond = given
    exact = Denoiser(unet, SCHEDULE, EPSILON)
    found = []
    for parts in ((), (DeepCache(2),)):
        denoise = approximated(exact, parts, Scope(LEVELS, (7, 5), torch.device("cpu"))).bind(cond)
        *_, last = find("latent_diffusion.samplers", name)()(denoise, x, LEVELS, NoiseSource([1, 2]))
        found.append(last.x)
    assert found[1].isfinite().all() and not torch.equal(*found)
    assert (found[1] - found[0]).norm() <= 0.3 * found[0].norm()
