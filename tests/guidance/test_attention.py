"""PAG and SEG on the U-Net: against diffusers' processors, against the formulas, and without touching the model."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from latent_diffusion.checkpoint.folder.network_config import unet_values
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.prediction import EPSILON
from latent_diffusion.errors import ConfigError
from latent_diffusion.families import tiny
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.guidance.pag import PAG
from latent_diffusion.guidance.seg import SEG, blurred, gaussian_matrix, map_sizes
from latent_diffusion.models.unet import UNet
from latent_diffusion.schedules.scaled_linear import ScaledLinearSchedule

SCHEDULE = ScaledLinearSchedule()
LEVEL = SCHEDULE.level(500)
CONFIG = dataclasses.replace(tiny.UNET, layers_per_block=2)


@pytest.fixture(scope="module")
def pair():
    """Diffusers' U-Net and ours with the same weights, norms and biases moved."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    theirs = UNet2DConditionModel.from_config(unet_values(CONFIG)).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    ours = UNet(CONFIG).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(1)
    prompt, negative = (Conditioning(torch.randn(2, 7, 32, generator=generator)) for _ in range(2))
    return torch.randn(2, 4, 8, 12, generator=generator), prompt, negative


@torch.no_grad()
def guided(ours, guidance, x, prompt, negative):
    model = Denoiser(ours, SCHEDULE, EPSILON)
    return model.output(guidance.bind(model, prompt, negative)(x, LEVEL), x, LEVEL)


def with_processors(theirs, layers, processor):
    """Put `processor` into diffusers' self-attentions whose name holds one of `layers`; return how to take it out."""
    before = dict(theirs.attn_processors)
    found = {name for name in before if ".attn1." in name and any(layer in name for layer in layers)}
    theirs.set_attn_processor({name: processor if name in found else old for name, old in before.items()})
    return lambda: theirs.set_attn_processor(before)


@pytest.mark.parametrize("layers", [["mid"], ["up_blocks.0"], ["down_blocks", "mid"]], ids="+".join)
@pytest.mark.parametrize("scale", [1.0, 5.0], ids=["alone", "with cfg"])
def test_pag_equals_diffusers(pair, drawn, layers, scale):
    from diffusers.models.attention_processor import (
        PAGCFGIdentitySelfAttnProcessor2_0,
        PAGIdentitySelfAttnProcessor2_0,
    )

    theirs, ours = pair
    x, prompt, negative = drawn
    guides = scale != 1.0
    undo = with_processors(
        theirs, layers, PAGCFGIdentitySelfAttnProcessor2_0() if guides else PAGIdentitySelfAttnProcessor2_0()
    )
    rows = [negative, prompt, prompt] if guides else [prompt, prompt]
    with torch.no_grad():
        out = theirs(torch.cat([x] * len(rows)), 500, torch.cat([cond.context for cond in rows])).sample
    undo()
    if guides:
        away, towards, perturbed = out.chunk(3)
        wanted = away + scale * (towards - away) + 3.0 * (towards - perturbed)
    else:
        towards, perturbed = out.chunk(2)
        wanted = towards + 3.0 * (towards - perturbed)
    got = guided(ours, CFG(scale) + PAG(3.0, layers="|".join(layers)), x, prompt, negative)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert (towards - perturbed).abs().max() > 1e-3


def test_seg_with_infinite_blur_gives_all_queries_their_mean(pair, drawn):
    """Against diffusers' U-Net with its query projection averaged by a hook."""
    theirs, ours = pair
    x, prompt, negative = drawn
    blocks = theirs.mid_block.attentions[0].transformer_blocks
    hooks = [
        block.attn1.to_q.register_forward_hook(lambda m, i, o: o.mean(1, keepdim=True).expand_as(o)) for block in blocks
    ]
    with torch.no_grad():
        perturbed = theirs(x, 500, prompt.context).sample
        for hook in hooks:
            hook.remove()
        towards = theirs(x, 500, prompt.context).sample
    wanted = towards + 3.0 * (towards - perturbed)
    torch.testing.assert_close(guided(ours, SEG(3.0), x, prompt, negative), wanted, rtol=1e-4, atol=1e-5)
    assert (towards - perturbed).abs().max() > 1e-3


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.0])
def test_the_blur_is_a_gaussian_convolution_with_mirrored_edges(sigma):
    torch.manual_seed(0)
    height, width, radius = 9, 13, math.ceil(3 * sigma)
    q = torch.randn(2, 3, height * width, 5)
    line = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    line = line / line.sum()
    maps = q.transpose(2, 3).reshape(-1, 1, height, width)
    wanted = F.conv2d(F.pad(maps, (radius,) * 4, mode="reflect"), torch.outer(line, line)[None, None])
    wanted = wanted.reshape(2, 3, 5, -1).transpose(2, 3)
    torch.testing.assert_close(blurred(q, (height, width), sigma), wanted, rtol=1e-5, atol=1e-6)


def test_the_blur_keeps_constants_at_any_width_and_becomes_the_mean():
    for side in (1, 2, 5):
        matrix = gaussian_matrix(side, 20.0)
        torch.testing.assert_close(matrix.sum(1), torch.ones(side))
        torch.testing.assert_close(matrix, torch.full((side, side), 1 / side), rtol=0.35, atol=0.1)


def test_maps_of_every_level_are_known_by_their_tokens(pair, drawn):
    assert map_sizes(9, 13) == {117: (9, 13), 35: (5, 7), 12: (3, 4), 4: (2, 2), 1: (1, 1)}
    _, ours = pair
    _, prompt, negative = drawn
    x = torch.randn(2, 4, 9, 13, generator=torch.Generator().manual_seed(2))
    got = guided(ours, SEG(3.0, sigma=1.5, layers=""), x, prompt, negative)
    assert got.isfinite().all() and got.shape == x.shape


@pytest.mark.parametrize("guidance", [PAG(3.0), SEG(3.0), SEG(3.0, sigma=1.0)], ids=["pag", "seg", "seg-1"])
def test_the_model_is_not_touched_and_its_weights_are_shared(pair, drawn, guidance):
    _, ours = pair
    x, prompt, negative = drawn
    kernels = [module.kernel for module in ours.modules() if hasattr(module, "kernel")]
    plain = guided(ours, CFG(1.0), x, prompt, negative)
    storage = {p.data_ptr() for p in ours.parameters()}
    model = Denoiser(ours, SCHEDULE, EPSILON)
    (stage,) = [s for s in guidance.stages(context(model, prompt, negative)) if s.needs]
    network = stage.needs[0].terms[0][0].denoiser.network
    inner = network if isinstance(network, torch.nn.Module) else network.network
    assert {p.data_ptr() for p in inner.parameters()} == storage
    guided(ours, guidance, x, prompt, negative)
    assert [module.kernel for module in ours.modules() if hasattr(module, "kernel")] == kernels
    assert torch.equal(guided(ours, CFG(1.0), x, prompt, negative), plain)


def context(model, prompt, negative):
    from latent_diffusion.diffusion.guidance import GuidanceContext

    return GuidanceContext.of(model, prompt, negative, None, ())


def test_layers_that_are_not_there_are_named(pair, drawn):
    _, ours = pair
    x, prompt, negative = drawn
    with pytest.raises(ConfigError, match=r"pag: layers 'middle' matches none of .*mid_block\.attentions\.0"):
        guided(ours, PAG(3.0, layers="middle"), x, prompt, negative)
    with pytest.raises(ConfigError, match=r"layers '\(\.\*\)\+' matches none"):
        guided(ours, PAG(3.0, layers="(.*)+"), x, prompt, negative)
    with pytest.raises(ConfigError, match="needs a U-Net"):
        PAG(3.0).bind(Denoiser(object(), SCHEDULE, EPSILON), prompt, negative)
