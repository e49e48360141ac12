"""Inpainting by the denoiser wrapper."""

import torch

from latent_diffusion.diffusion.known import keep_known
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.samplers.ddim import DDIM
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule


def estimate(x, level):
    return torch.tanh(x.roll(1, -1))


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
