"""What every file in approximations/ must fulfil."""

import dataclasses
from itertools import pairwise

import pytest
import torch

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.approximation import Approximation, Scope, approximated
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.prediction import EPSILON
from latent_diffusion.families import tiny
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.guidance.pag import PAG
from latent_diffusion.guidance.seg import SEG
from latent_diffusion.models.tiny_autoencoder import TinyAutoencoder, TinyAutoencoderConfig
from latent_diffusion.models.unet import UNet
from latent_diffusion.registry import find, names
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

SCHEDULE = ScaledLinearSchedule()
LEVELS = [SCHEDULE.level(t, k) for k, t in enumerate((999.0, 800.0, 600.0, 400.0, 200.0, -1.0))]
SIZES = [(8, 8), (7, 5), (1, 3)]
OF_A_BATCH = {"int8": 0.1}
"""Difference of an image alone from the same in a batch. Rounding to 8 bits makes a step of a difference in the last
bit, which torch's products have from batch to batch. The kernels' own products have none: `tests/runtime`."""


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = UNet(tiny.UNET).eval()
    with torch.no_grad():
        network.conv_out.weight.mul_(3)  # outputs of about unit size, as a trained network's
    return network


@pytest.fixture(scope="module")
def denoiser(network):
    return Denoiser(network, SCHEDULE, EPSILON)


@pytest.fixture(params=names("latent_diffusion.approximations"))
def name(request):
    return request.param


def build(name, **arguments):
    rest = {"taesd": {"autoencoder": TinyAutoencoder(TinyAutoencoderConfig((8, 8), (8, 8), (1, 1), (1, 1)))}}
    return find("latent_diffusion.approximations", name)(**{**rest.get(name, {}), **arguments})


def doing_nothing(name):
    return build(name, **find("latent_diffusion.approximations", name).neutral)


def drawn(rows, size=(8, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, *size, generator=generator)
    return x, *(Conditioning(torch.randn(rows, 5, 32, generator=generator)) for _ in range(2))


def onward(x, x0, level, after):
    """Return x at the next level: DDIM's step."""
    return after.alpha * x0 + after.sigma * (x - level.alpha * x0) / level.sigma


@torch.no_grad()
def walk(denoiser, parts, x, prompt, negative, guidance=None, levels=LEVELS, **how):
    """Return x0 at every level of a walk that follows the estimates."""
    scope = Scope(levels, tuple(x.shape[-2:]), torch.device("cpu"))
    guidance = CFG(4.0) if guidance is None else guidance
    denoise = guidance.bind(approximated(denoiser, parts, scope), prompt, negative, levels=levels, **how)
    found = []
    for level, after in pairwise(levels):
        x0 = denoise(x, level)
        found.append(x0)
        x = onward(x, x0, level, after)
    return torch.stack(found)


def close(a, b, tolerance=1e-5):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max()))


def test_is_frozen_and_says_its_numbers_by_default(name):
    made = build(name)
    assert isinstance(made, Approximation) and dataclasses.is_dataclass(made)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.place = 3
    values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    assert dataclasses.replace(made, **values) == made


def test_neutral_is_exact_bit_for_bit(name, denoiser):
    inputs = drawn(2)
    assert torch.equal(
        walk(denoiser, (doing_nothing(name),), *inputs),
        walk(denoiser, (), *inputs),
    )


def test_the_estimates_are_near_the_exact_ones(name, denoiser):
    """And other, but for a decoder, which leaves the latents alone."""
    inputs = drawn(2)
    exact, near = walk(denoiser, (), *inputs), walk(denoiser, (build(name),), *inputs)
    assert near.isfinite().all() and torch.equal(exact, near) == (name == "taesd")
    assert (near - exact).norm() <= 0.5 * exact.norm()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_size(name, denoiser, size):
    inputs = drawn(2, size)
    assert walk(denoiser, (build(name),), *inputs).shape[-2:] == size


@pytest.mark.parametrize("guidance", [CFG(4.0), CFG(4.0) + PAG(2.0)], ids=["cfg", "cfg+pag"])
def test_an_image_alone_is_that_image_in_a_batch(name, denoiser, guidance):
    x, prompt, negative = drawn(4)
    batch = walk(denoiser, (build(name),), x, prompt, negative, guidance)
    for k in range(4):
        row = slice(k, k + 1)
        alone = walk(denoiser, (build(name),), x[row], prompt[row], negative[row], guidance)
        close(alone, batch[:, row], OF_A_BATCH.get(name, 1e-5))
    sliced = walk(denoiser, (build(name),), x, prompt, negative, guidance, slicing=True)
    close(sliced, batch, OF_A_BATCH.get(name, 1e-5))


def test_no_state_between_calls_and_the_network_stays(name, network, denoiser):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modules = list(network.named_modules())
    inputs = drawn(2)
    first = walk(denoiser, (build(name),), *inputs)
    walk(denoiser, (build(name),), *drawn(2, seed=1))
    assert torch.equal(walk(denoiser, (build(name),), *inputs), first)
    assert list(network.named_modules()) == modules
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_two_walks_at_once_do_not_know_of_each_other(name, denoiser):
    scope, part = Scope(LEVELS, (8, 8), torch.device("cpu")), build(name)
    rows = [drawn(1, seed=seed) for seed in (1, 2)]
    alone = [walk(denoiser, (part,), *row) for row in rows]
    bound = [CFG(4.0).bind(approximated(denoiser, (part,), scope), *row[1:], levels=LEVELS) for row in rows]
    states, found = [row[0] for row in rows], [[], []]
    with torch.no_grad():
        for level, after in pairwise(LEVELS):
            for k, denoise in enumerate(bound):  # in turn
                x0 = denoise(states[k], level)
                found[k].append(x0)
                states[k] = onward(states[k], x0, level, after)
    assert all(torch.equal(torch.stack(found[k]), alone[k]) for k in range(2))


def test_what_guidance_adds_is_approximated_or_exact(name, denoiser):
    """PAG's perturbed network is approximated too, SEG's is not; both give pictures near the exact ones."""
    inputs = drawn(2)
    for guidance in (PAG(2.0, layers=""), SEG(2.0, layers="")):
        exact = walk(denoiser, (), *inputs, guidance)
        close(
            walk(denoiser, (doing_nothing(name),), *inputs, guidance),
            exact,
            0.0,
        )
        assert (walk(denoiser, (build(name),), *inputs, guidance) - exact).norm() <= 0.5 * exact.norm()
