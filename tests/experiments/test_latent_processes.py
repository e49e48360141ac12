"""The three processes on latents of docs/science/processes.md, at small sizes: what they draw with a known network."""

import pytest
import torch

from experiments.science.families.family import Draws, drawn_in_batches
from experiments.science.families.on_latents import (
    CHANNELS,
    SIDE,
    DampedLatents,
    DenoisingGAN,
    LatentDiffusion,
)
from experiments.science.families.training import Training
from experiments.science.latent_processes import spread_rows
from latent_diffusion.diffusion.damped_steps import EulerMaruyama, Splitting
from latent_diffusion.training.losses.points.denoising_gan import GanSettings

WIDTHS = (8, 8, 8)
SMALL = {
    "diffusion": lambda: LatentDiffusion(WIDTHS),
    "damped": lambda: DampedLatents(WIDTHS),
    "gan": lambda: DenoisingGAN(WIDTHS, GanSettings(latents=4, r1_every=2)),
}


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


@pytest.fixture
def latents():
    return torch.randn(6, CHANNELS, SIDE, SIDE)


def read(latents, draws):
    return latents


@pytest.mark.parametrize("name", SMALL)
def test_a_training_that_goes_on_ends_bit_equal(name, latents, tmp_path):
    def begin():
        return Training(SMALL[name], latents, seed=3, batch=2, read=read)

    whole, first, second = begin(), begin(), begin()
    for _ in range(4):
        whole.update()
    for _ in range(2):
        first.update()
    first.save(tmp_path / "checkpoint.safetensors")
    second.load(tmp_path / "checkpoint.safetensors")
    for _ in range(2):
        second.update()
    assert all(torch.equal(value, second.average[name]) for name, value in whole.average.items())
    assert any(not torch.equal(value, first.average[name]) for name, value in whole.average.items())


def test_a_training_ends_when_its_minutes_are_spent(latents, tmp_path):
    training = Training(SMALL["diffusion"], latents, batch=2, read=read)
    list(training.go_on(tmp_path, 0.01, [0.002]))
    assert training.spent >= 0.6 and (tmp_path / "average-0.002.safetensors").exists()
    updates = training.updates
    again = Training(SMALL["diffusion"], latents, batch=2, read=read)
    assert list(again.go_on(tmp_path, 0.01)) == [] and again.updates == updates


@pytest.mark.parametrize("sampler", [EulerMaruyama(), Splitting()])
def test_a_damped_network_without_an_output_draws_the_normal_law(sampler):
    family = DampedLatents(WIDTHS)
    family.network.forward = lambda u, a: torch.zeros_like(u[:, :CHANNELS])
    drawn = family.sample(40, 1, sampler, 100)
    assert drawn.shape == (40, CHANNELS, SIDE, SIDE)
    assert abs(drawn.mean()) < 0.02 and abs(drawn.std() - 1) < 0.03


def test_networks_that_know_the_latent_draw_it(latents):
    one = latents[:1]
    gan, diffusion = SMALL["gan"](), SMALL["diffusion"]()
    gan.generator.forward = lambda x, z, t: one.expand_as(x)

    def v(x, t):
        alpha, sigma = (part[:, None, None, None].to(x) for part in diffusion.schedule.alpha_sigma(t.long()))
        return (alpha * x - one) / sigma

    diffusion.network.forward = v
    for drawn in (gan.sample(3, 1), diffusion.sample(3, 1, "ddim", 4)):
        torch.testing.assert_close(drawn, one.expand_as(drawn), rtol=1e-3, atol=1e-3)


def test_a_players_loss_reaches_its_own_weights(latents):
    gan = SMALL["gan"]()
    for player, weights in gan.players().items():
        loss = gan.loss(player, latents, Draws(0, 1, 0))
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        assert any(one is not None and one.abs().max() > 0 for one in found)


def test_a_drawing_does_not_depend_on_how_many_are_drawn():
    many, few = (drawn_in_batches(count, 2, lambda noise: noise.draw((3,))) for count in (70, 5))
    assert torch.equal(many[:5], few) and len(many) == 70


def test_rows_at_even_distances():
    assert spread_rows(torch.arange(9), 3).tolist() == [0, 4, 8]
