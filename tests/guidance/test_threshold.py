"""Dynamic thresholding against diffusers', and for latents."""

import torch
from mixing import LEVEL, denoiser, drawn, x0_of

from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.guidance.threshold import Threshold


def test_with_a_limit_of_one_it_is_imagens():
    from diffusers import DDIMScheduler

    x, prompt, negative, _ = drawn()
    guided = CFG(9.0).bind(denoiser(), prompt, negative)(x, LEVEL)
    theirs = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1e9)
    got = (CFG(9.0) + Threshold(0.9, limit=1.0)).bind(denoiser(), prompt, negative)(x, LEVEL)
    torch.testing.assert_close(got, theirs._threshold_sample(guided), rtol=1e-6, atol=1e-6)
    assert got.abs().max() <= 1.0


def test_latents_keep_the_range_of_weaker_guidance():
    x, prompt, negative, _ = drawn()
    weak, strong = (CFG(scale).bind(denoiser(), prompt, negative)(x, LEVEL) for scale in (2.0, 15.0))
    got = (CFG(15.0) + Threshold(mimic_scale=2.0)).bind(denoiser(), prompt, negative)(x, LEVEL)

    def reach(x0, about):
        return (x0 - about.mean((2, 3), keepdim=True)).abs().amax((2, 3))

    wider = reach(strong, strong) > reach(weak, weak)  # image by image, channel by channel
    assert wider.any()
    assert (reach(got, strong)[wider] <= reach(weak, weak)[wider] * (1 + 1e-5)).all()


def test_an_unguided_estimate_stays():
    x, prompt, negative, _ = drawn()
    got = (CFG(1.0) + Threshold()).bind(denoiser(), prompt, negative)(x, LEVEL)
    assert torch.equal(got, x0_of(denoiser(), x, prompt))
