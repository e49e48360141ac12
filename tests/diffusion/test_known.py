"""Inpainting by the denoiser wrapper."""

import math

import torch

from latent_diffusion.diffusion.known import keep_known, release_known
from latent_diffusion.diffusion.level import Level
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.samplers.ddim import DDIM
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule


def estimate(x, level):
    return torch.tanh(x.roll(1, -1))


def _between(first, second):
    """Alpha and sigma halfway, in log-SNR, between two levels."""
    log_snr = 0.5 * (first.log_snr + second.log_snr)
    alpha = (1 / (1 + math.exp(-log_snr))) ** 0.5
    return alpha, (1 - alpha**2) ** 0.5


def test_equals_blending_the_noised_picture_after_every_step():
    """With DDIM, started on the noised picture: the same as x = m x + (1 - m)(alpha known + sigma noise) each step."""
    generator = torch.Generator().manual_seed(0)
    known, noise = torch.randn(2, 1, 4, 8, 8, generator=generator)
    mask = (torch.rand(1, 1, 8, 8, generator=generator) > 0.5).float()
    visited = levels(ScaledLinearSchedule(), "trailing", 10)
    x = visited[0].alpha * known + visited[0].sigma * noise
    wrapped = list(DDIM()(keep_known(estimate, known, mask), x, visited, NoiseSource([0])))
    for level, after, step in zip(visited, visited[1:], wrapped, strict=False):
        (free,) = DDIM()(estimate, x, [level, after], NoiseSource([0]))
        x = mask * free.x + (1 - mask) * (after.alpha * known + after.sigma * noise)
        torch.testing.assert_close(step.x, x, rtol=0, atol=2e-6)


def test_soft_mask_mixes():
    known, x = torch.zeros(1, 4, 2, 2), torch.ones(2, 4, 2, 2)
    level = ScaledLinearSchedule().level(500)
    blended = keep_known(lambda x, level: x, known, torch.full((1, 1, 2, 2), 0.25))(x, level)
    torch.testing.assert_close(blended, torch.full((2, 4, 2, 2), 0.25))


def test_each_place_is_released_when_its_share_of_the_steps_is_left():
    """Strength 1, 0.5, 0.3, 0 over ten steps: drawn freely in ten, five, three and none of them."""
    visited = levels(ScaledLinearSchedule(), "trailing", 10)
    strength = torch.tensor([1.0, 0.5, 0.3, 0.0]).reshape(1, 1, 1, 4)
    denoise = release_known(lambda x, level: torch.ones_like(x), torch.zeros(1, 4, 1, 4), strength, visited)
    free = torch.stack([denoise(torch.zeros(2, 4, 1, 4), level) for level in visited[:-1]]).sum(0)
    assert free[0, 0, 0].tolist() == [10, 5, 3, 0]
    between = Level(0, 0.0, *_between(visited[4], visited[5]))
    assert denoise(torch.zeros(1, 4, 1, 4), between)[0, 0, 0].tolist() == [1, 0, 0, 0]


def test_a_map_of_one_strength_is_image_to_image_of_that_strength():
    """A place held until half the steps are left is then exactly where image to image of strength 0.5 starts."""
    generator = torch.Generator().manual_seed(0)
    known, noise = torch.randn(2, 1, 4, 8, 8, generator=generator)
    visited = levels(ScaledLinearSchedule(), "trailing", 10)
    half = torch.full((1, 1, 8, 8), 0.5)
    start = visited[0].alpha * known + visited[0].sigma * noise
    held = list(DDIM()(release_known(estimate, known, half, visited), start, visited, NoiseSource([0])))
    late = visited[5].alpha * known + visited[5].sigma * noise
    free = list(DDIM()(estimate, late, visited[5:], NoiseSource([0])))
    torch.testing.assert_close(held[-1].x, free[-1].x, rtol=0, atol=2e-6)


def test_a_binary_map_is_a_mask():
    generator = torch.Generator().manual_seed(1)
    known, x = torch.randn(2, 1, 4, 8, 8, generator=generator)
    mask = (torch.rand(1, 1, 8, 8, generator=generator) > 0.5).float()
    visited = levels(ScaledLinearSchedule(), "leading", 7)
    for level in visited[:-1]:
        one, other = release_known(estimate, known, mask, visited), keep_known(estimate, known, mask)
        assert torch.equal(one(x, level), other(x, level))
