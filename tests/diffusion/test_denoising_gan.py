"""Denoising-diffusion GAN: its large steps, their reverse, and what an exact generator draws in four evaluations."""

import pytest
import torch

from latent_diffusion.diffusion.denoising_gan import draw_pictures, large_steps
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.training.losses.points.denoising_gan import GanSettings, LargeSteps

COUNT = 2000
MEAN, SPREAD = 0.7, 0.5


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_levels_lead_from_noise_to_the_clean_one(steps):
    levels = large_steps(steps)
    assert len(levels) == steps + 1 and [level.t for level in levels] == list(range(steps - 1, -2, -1))
    assert all(abs(level.alpha**2 + level.sigma**2 - 1) < 1e-15 for level in levels)
    assert levels[0].alpha < 0.007 and (levels[-1].alpha, levels[-1].sigma) == (1.0, 0.0)


def test_a_pair_and_its_reverse_have_one_law():
    """With the true x0 the reverse has the covariances of the forward pair, which are known: 3 standard errors."""
    process = LargeSteps(GanSettings(), seed=3)
    x0 = torch.full((4 * COUNT, 1), 0.4, dtype=torch.float64)
    pair = process.pair(x0, range(4 * COUNT), "pairs")
    reverse = process.undone(x0, pair)
    levels = large_steps(4)[::-1]
    for t in range(4):
        mine = pair.t == t
        before, after = levels[t], levels[t + 1]
        assert mine.sum() == COUNT
        for x_s in (pair.before[mine], reverse[mine]):
            off, off_after = x_s - before.alpha * 0.4, pair.after[mine] - after.alpha * 0.4
            assert abs(off.mean()) <= 3 * before.sigma / COUNT**0.5 + 1e-12
            assert abs(off.square().mean() - before.sigma**2) <= 3 * before.sigma**2 * (2 / COUNT) ** 0.5 + 1e-12
            shared = after.alpha / before.alpha * before.sigma**2
            error = (shared**2 + (before.sigma * after.sigma) ** 2) ** 0.5 / COUNT**0.5
            assert abs((off * off_after).mean() - shared) <= 3 * error
    assert torch.equal(reverse[pair.t == 0], x0[pair.t == 0])


def drawn(generate, steps):
    noise = NoiseSource([11])

    def draw(shape):
        return noise.draw((COUNT, *shape))[0].double()

    *_, last = draw_pictures(generate, draw((1,)), 1, large_steps(steps), draw)
    return last.x


def estimate(x, t, steps):
    """Mean and deviation of x0 given x_t, of data N(MEAN, SPREAD^2)."""
    level = large_steps(steps)[steps - 1 - int(t[0])]
    pull = level.alpha * SPREAD**2 / (level.alpha**2 * SPREAD**2 + level.sigma**2)
    return MEAN + pull * (x - level.alpha * MEAN), (SPREAD**2 * (1 - pull * level.alpha)) ** 0.5


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_an_exact_generator_draws_the_data_in_any_number_of_steps(steps):
    def generate(x, z, t):
        mean, deviation = estimate(x, t, steps)
        return mean + deviation * z

    x = drawn(generate, steps)
    assert abs(x.mean() - MEAN) < 3 * SPREAD / COUNT**0.5
    assert abs(x.var() - SPREAD**2) < 3 * SPREAD**2 * (2 / COUNT) ** 0.5


def test_the_mean_alone_does_not():
    """That is what a denoiser gives: in four steps it loses most of the variance."""
    x = drawn(lambda x, z, t: estimate(x, t, 4)[0], 4)
    assert x.var() < 0.6 * SPREAD**2
