"""Resampling: walks are counted, the noise put back has the right law, and any sampler can be wrapped."""

import pytest
import torch

from latent_diffusion.diffusion.known import keep_known
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.resample import Resampled
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.errors import ConfigError
from latent_diffusion.registry import find, names
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

SCHEDULE = ScaledLinearSchedule()
SAMPLERS = names("latent_diffusion.samplers")


def estimate(x, level):
    return torch.tanh(x.roll(1, -1))


def run(sampler, x, steps=7, seeds=(0,), denoise=estimate):
    return list(sampler(denoise, x, levels(SCHEDULE, "trailing", steps), NoiseSource(seeds)))


def start(count=1):
    return NoiseSource(range(count)).draw((4, 6, 6))


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_repeats_is_the_sampler_itself(name):
    sampler = find("latent_diffusion.samplers", name)()
    plain, wrapped = run(sampler, start()), run(Resampled(sampler, 0), start())
    assert all(torch.equal(a.x, b.x) for a, b in zip(plain, wrapped, strict=True))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_walks_each_stretch_again(name):
    sampler = Resampled(find("latent_diffusion.samplers", name)(), repeats=2, jump_length=3)
    steps = run(sampler, start())
    assert [step.index for step in steps] == list(range(21))
    assert sampler.steps(levels(SCHEDULE, "trailing", 7)) == 21
    assert steps[-1].x.isfinite().all()
    again = run(sampler, start())
    assert all(torch.equal(a.x, b.x) for a, b in zip(steps, again, strict=True))
    assert not torch.allclose(steps[-1].x, run(sampler.sampler, start())[-1].x, atol=1e-3)


def test_a_batch_equals_its_images_alone():
    sampler = Resampled(find("latent_diffusion.samplers", "ddpm")(), 1, 2)
    together = run(sampler, start(3), seeds=(0, 1, 2))[-1].x
    for k in range(3):
        alone = run(sampler, start(3)[k : k + 1], seeds=(k,))[-1].x
        torch.testing.assert_close(together[k : k + 1], alone, rtol=0, atol=1e-6)


def test_on_a_gaussian_the_law_is_kept():
    """For x0 ~ N(0, 1) the exact denoiser is alpha x: after any number of walks x is still N(0, 1)."""
    sampler = Resampled(find("latent_diffusion.samplers", "ddim")(), repeats=3, jump_length=25)
    x = torch.randn(1, 1, 200, 200, generator=torch.Generator().manual_seed(3))
    visited = levels(SCHEDULE, "trailing", 200)
    end = list(sampler(lambda x, level: level.alpha * x, x, visited, NoiseSource([0])))[-1].x
    assert abs(float(end.std()) - 1) < 0.02 and abs(float(end.mean())) < 0.02


def test_what_is_known_stays_known():
    known, mask = torch.full((1, 4, 6, 6), 0.7), torch.zeros(1, 1, 6, 6)
    mask[..., 3:] = 1
    end = run(Resampled(find("latent_diffusion.samplers", "dpmpp_2m")(), 2, 3), start(),
              denoise=keep_known(estimate, known, mask))[-1].x  # fmt: skip
    torch.testing.assert_close(end[..., :3], known[..., :3], rtol=0, atol=1e-6)


@pytest.mark.parametrize("values", [(-1, 10), (1, 0), (True, 1), (1.5, 2)])
def test_impossible_figures_are_refused(values):
    with pytest.raises(ConfigError, match="is not an integer"):
        Resampled(find("latent_diffusion.samplers", "ddim")(), *values)
