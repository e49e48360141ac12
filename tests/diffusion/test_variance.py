"""The learned variance: between the posterior's and the forward step's, of the prompt alone, and nowhere else."""

import math

import pytest
import torch

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.forward import transition
from latent_diffusion.diffusion.known import keep_known, kept
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.posterior import posterior
from latent_diffusion.diffusion.prediction import V
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.diffusion.variance import interpolated, parted, with_range
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.samplers.ddim import DDIM
from latent_diffusion.samplers.ddpm import DDPM
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

SCHEDULE = ScaledLinearSchedule()
SHAPE = (2, 4, 4)


class Network:
    """A smooth function of x, t and the condition, with a second half of its own."""

    def __init__(self, halves: int = 2, v: float | None = None) -> None:
        self.halves, self.v = halves, v

    def project(self, cond):
        return cond.context[:, :1, :1, None]

    def __call__(self, x, t, projected):
        mean = torch.tanh(x + projected)
        v = torch.sin(x.roll(1, -1) + projected) if self.v is None else torch.full_like(x, self.v)
        return torch.cat([mean, v][: self.halves], dim=1)


def cond(value: float, rows: int = 2) -> Conditioning:
    return Conditioning(torch.full((rows, 1, 1), value))


def denoiser(**how) -> Denoiser:
    return Denoiser(Network(**how), SCHEDULE, V, learned_variance=how.get("halves", 2) == 2)


def drawn(sampler, denoise):
    noise = NoiseSource([3, 4])
    *_, last = sampler(denoise, noise.draw(SHAPE), levels(SCHEDULE, "trailing", 6), noise)
    return last.x


@pytest.mark.parametrize("times", [(500, 499), (999, 932), (66, 0)])
def test_v_interpolates_the_logarithms_of_the_two_variances(times):
    level, after = (SCHEDULE.level(t) for t in times)
    least = posterior(level.alpha, level.sigma, after.alpha, after.sigma).variance
    _, most = transition(after.alpha, after.sigma, level.alpha, level.sigma)
    v = torch.linspace(-1.2, 1.2, 7, dtype=torch.float64)
    share = (v + 1) / 2
    wanted = torch.exp(share * math.log(most) + (1 - share) * math.log(least))
    torch.testing.assert_close(interpolated(least, most, v), wanted, rtol=1e-12, atol=0)


def test_v_of_minus_one_is_the_posteriors_variance_and_ddim_leaves_v_out():
    plain = denoiser(halves=1).bind(cond(0.2))
    torch.testing.assert_close(drawn(DDPM(), denoiser(v=-1.0).bind(cond(0.2))), drawn(DDPM(), plain), rtol=0, atol=1e-6)
    assert torch.equal(drawn(DDIM(), denoiser().bind(cond(0.2))), drawn(DDIM(), plain))
    assert not torch.allclose(drawn(DDPM(), denoiser(v=1.0).bind(cond(0.2))), drawn(DDPM(), plain))


@pytest.mark.parametrize("slicing", [False, True])
def test_guidance_weighs_the_mean_and_keeps_the_prompts_v(slicing):
    x, level = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)), SCHEDULE.level(400)
    guided = CFG(3.0).bind(denoiser(), cond(0.4), cond(-0.3), slicing=slicing)
    plain = CFG(3.0).bind(denoiser(halves=1), cond(0.4), cond(-0.3), slicing=slicing)
    x0, v = parted(with_range(guided)(x, level))
    torch.testing.assert_close(x0, plain(x, level))
    torch.testing.assert_close(v, torch.sin(x.roll(1, -1) + 0.4))
    assert parted(with_range(plain)(x, level))[1] is None


def test_what_is_known_of_a_picture_keeps_the_posteriors_variance():
    x, level = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)), SCHEDULE.level(400)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 2:] = 1
    known = torch.ones(1, *SHAPE)
    guided = CFG(1.0).bind(denoiser(), cond(0.4), cond(0.0), keep=kept(known, mask))
    for denoise in (guided, keep_known(denoiser().bind(cond(0.4)), known, mask)):
        x0, v = parted(with_range(denoise)(x, level))
        assert (v[..., :2] == -1).all() and (x0[..., :2] == 1).all()
        torch.testing.assert_close(v[..., 2:], torch.sin(x.roll(1, -1) + 0.4)[..., 2:])
