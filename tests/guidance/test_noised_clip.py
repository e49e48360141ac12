"""CLIP guidance on Gaussians, where f(x) . g(c) is the exact log-density and the guided estimate is known."""

import pytest
import torch
from mixing import LEVELS, SCHEDULE, denoiser, drawn

from latent_diffusion.conditioning import Blend, Conditioning
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.gradient_push import gradient_of
from latent_diffusion.diffusion.prediction import EPSILON, X0
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.guidance.noised_clip import ClipGuidance
from latent_diffusion.models.latent_clip import LatentCLIP, LatentCLIPConfig

SPREAD, NOISE = 1.3, 0.5  # x0 ~ N(0, SPREAD^2), and the caption of a picture is c = x0 + N(0, NOISE^2), value by value
SHAPE = (2, 4, 8, 8)


def captions(seed=1):
    """Return captions (2, 1, 256), one for each picture, as the text states of one token."""
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(torch.randn(2, 1, 256, dtype=torch.float64, generator=generator))


class Unconditional:
    """The exact network of Gaussian data that reads no text: E[x0 | x]."""

    def project(self, cond):
        return None

    def __call__(self, x, t, projected):
        level = SCHEDULE.level(float(t[0]))
        return x * level.alpha * SPREAD**2 / (level.alpha**2 * SPREAD**2 + level.sigma**2)


def exact_score(context):
    """f(x) . g(c) = log p(c | x_t) but for a constant in x: f = (m x / v, -m^2 x^2 / 2 v), g = (c, 1)."""
    g = torch.cat([context[:, 0], torch.ones_like(context[:, 0])], dim=1)

    def log_prob(x, t):
        level = SCHEDULE.level(float(t[0]))
        total = level.alpha**2 * SPREAD**2 + level.sigma**2
        m, v = level.alpha * SPREAD**2 / total, SPREAD**2 * level.sigma**2 / total + NOISE**2  # of c given x_t
        flat = x.flatten(1)
        return (torch.cat([m * flat / v, -(m**2) * flat**2 / (2 * v)], dim=1) * g).sum(dim=1)

    return log_prob


def of_caption(x, level, c):
    """E[x0 | x, c]: the precisions of the prior, of x / alpha and of c add up."""
    weights = (1 / SPREAD**2, level.alpha**2 / level.sigma**2, 1 / NOISE**2)
    return (weights[1] * x / level.alpha + weights[2] * c) / sum(weights)


@pytest.mark.parametrize("level", LEVELS[:-1], ids=lambda level: f"{level.t:g}")
def test_scale_one_is_the_exact_estimate_of_the_caption(level):
    x, cond = drawn()[0].double(), captions()
    model = Denoiser(Unconditional(), SCHEDULE, X0, torch.float64)
    with torch.no_grad():
        got = ClipGuidance(1.0, exact_score).bind(model, cond, cond)(x, level)
    wanted = of_caption(x, level, cond.context.reshape(SHAPE))
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_the_push_stands_beside_cfg_and_reads_the_prompt_alone():
    """It is added to what CFG makes; a term of weight -1 turns its push round; a negative prompt changes nothing."""
    x, prompt, negative, other = drawn()
    level, model = LEVELS[2], denoiser(EPSILON)

    def score(context):
        return lambda x, t: (x.mean((1, 2, 3)) * context.mean((1, 2))).sin()

    def push(prompt, negative, first):
        with torch.inference_mode():
            both = (first + ClipGuidance(50.0, score)).bind(model, prompt, negative)(x, level)
            return both - first.bind(model, prompt, negative)(x, level)

    alone = push(prompt, negative, CFG(1.0))
    assert alone.abs().max() > 1e-3
    torch.testing.assert_close(push(prompt, negative, CFG(3.0)), alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(push(prompt, other, CFG(3.0)), alone, rtol=1e-4, atol=1e-5)
    against = push(Blend(((prompt, 1.0), (other, -1.0))), negative, CFG(1.0))
    torch.testing.assert_close(against, alone - push(other, negative, CFG(1.0)), rtol=1e-4, atol=1e-5)


def test_the_gradient_of_the_network_is_that_of_finite_differences():
    torch.manual_seed(0)
    network = LatentCLIP(LatentCLIPConfig(4, (8, 16), groups=4, text_width=5, embed_dim=6)).double()
    x, cond = drawn()[0].double(), drawn()[1].to(dtype=torch.float64)
    text, t = network.text_features(cond.context).detach(), torch.tensor([100.0, 700.0], dtype=torch.float64)

    def score(x, t):
        return network.score(network.image_features(x, t), text)

    along, step = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64), 1e-5
    slope = (gradient_of(score, x, t) * along).sum((1, 2, 3))
    with torch.no_grad():
        difference = (score(x + step * along, t) - score(x - step * along, t)) / (2 * step)
    torch.testing.assert_close(slope, difference, rtol=1e-7, atol=1e-9)
    assert slope.abs().min() > 1e-3
