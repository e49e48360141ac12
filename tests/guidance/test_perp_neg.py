"""Perp-Neg: what is taken away stands across what the prompt adds."""

import torch
from mixing import LEVEL, denoiser, drawn, x0_of

from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.guidance.perp_neg import PerpNeg


def parts(x, prompt, negative, empty):
    model = denoiser()
    start = x0_of(model, x, empty)
    return start, x0_of(model, x, prompt) - start, x0_of(model, x, negative) - start


def test_is_the_papers_formula_and_keeps_the_prompts_push():
    x, prompt, negative, empty = drawn()
    got = PerpNeg(5.0, negative_scale=0.8).bind(denoiser(), prompt, negative, empty=empty)(x, LEVEL)
    start, positive, away = parts(x, prompt, negative, empty)
    for k in range(2):
        p, n = positive[k].flatten().double(), away[k].flatten().double()
        across = n - p * (n @ p) / (p @ p)
        wanted = start[k].flatten() + 5.0 * (p - 0.8 * across)
        torch.testing.assert_close(got[k].flatten(), wanted.float(), rtol=1e-5, atol=1e-4)
        along = ((got[k] - start[k]).flatten().double() @ p) / (p @ p)
        torch.testing.assert_close(along, torch.tensor(5.0, dtype=torch.float64), rtol=1e-5, atol=0)


def test_a_negative_along_the_prompt_takes_nothing_away():
    """Where CFG with the prompt as its own negative draws the prompt alone, Perp-Neg still draws it at full scale."""
    x, prompt, _, empty = drawn()
    got = PerpNeg(5.0).bind(denoiser(), prompt, prompt, empty=empty)(x, LEVEL)
    wanted = CFG(5.0).bind(denoiser(), prompt, empty)(x, LEVEL)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_without_a_weight_the_negative_is_not_asked_for():
    x, prompt, negative, empty = drawn()
    model = denoiser()
    got = PerpNeg(5.0, negative_scale=0.0).bind(model, prompt, negative, empty=empty)(x, LEVEL)
    assert model.network.seen == [4]
    assert torch.equal(got, CFG(5.0).bind(model, prompt, empty)(x, LEVEL))
