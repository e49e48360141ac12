"""Our U-Net against diffusers' with the same weights.

Bound 1e-5 relative: float32 sums may be ordered differently. All weights are perturbed, so that norms (1 and 0 in a
fresh model) and biases count.
"""

import dataclasses

import pytest
import torch

from latent_diffusion.checkpoint.folder.network_config import unet_values
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.families import sd1
from latent_diffusion.models.unet import UNet, UNetConfig

BOUND = 1e-5
SD1_LIKE = UNetConfig(
    sample_size=8,
    block_out_channels=(32, 64, 64, 64),
    layers_per_block=2,
    cross_attention=(True, True, True, False),
    num_attention_heads=(8, 8, 8, 8),
    cross_attention_dim=24,
)
SMALL = UNetConfig(
    sample_size=16,
    block_out_channels=(32, 64, 96),
    layers_per_block=1,
    cross_attention=(False, True, True),
    num_attention_heads=(1, 2, 3),
    cross_attention_dim=48,
)
CASES = {
    "sd1": (SD1_LIKE, (16, 8)),
    "linear projection": (dataclasses.replace(SD1_LIKE, use_linear_projection=True, upcast_attention=True), (8, 8)),
    "one layer, no attention on top": (SMALL, (16, 16)),
    "two transformer blocks": (dataclasses.replace(SMALL, transformer_layers_per_block=2, norm_num_groups=16), (8, 8)),
    "inpainting channels": (dataclasses.replace(SMALL, in_channels=9), (8, 12)),
    "odd sizes": (SMALL, (9, 13)),
    "one level": (
        UNetConfig(8, (32,), 3, cross_attention=(True,), num_attention_heads=(4,), cross_attention_dim=16),
        (6, 5),
    ),
}


def sharpen(model: torch.nn.Module) -> None:
    """Move every weight, the norms' too."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.05)


def pair(config: UNetConfig):
    """Return diffusers' U-Net and ours with the same random weights."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    theirs = UNet2DConditionModel.from_config(unet_values(config)).eval()
    sharpen(theirs)
    with torch.device("meta"):
        ours = UNet(config)
    ours.load_state_dict(theirs.state_dict(), assign=True)  # strict: the names are diffusers'
    return theirs, ours.eval()


def relative_error(theirs, ours: UNet, size: tuple[int, int], tokens: int = 7) -> float:
    config = ours.config
    x = torch.randn(3, config.in_channels, *size)
    t, context = torch.tensor([0, 481, 999]), torch.randn(3, tokens, config.cross_attention_dim)
    extra = config.in_channels - config.out_channels
    concat = x[:, -extra:] if extra else None
    with torch.no_grad():
        expected = theirs(x, t, context).sample
        found = ours(x[:, : config.out_channels], t, ours.project(Conditioning(context, concat=concat)))
    assert found.shape == expected.shape and expected.std() > 0.05, "a dead network proves nothing"
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", CASES)
def test_equals_diffusers(name):
    config, size = CASES[name]
    assert relative_error(*pair(config), size) <= BOUND


def test_parameters_come_in_the_same_shapes_as_sd1():
    """The true SD 1.5 U-Net, without its 3.4 GB: names and shapes on the meta device."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        theirs = UNet2DConditionModel.from_config(unet_values(sd1.UNET)).state_dict()
        ours = UNet(sd1.UNET).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert sum(v.numel() for v in ours.values()) == 859_520_964  # the published model's count


@pytest.mark.slow
def test_true_sd1_equals_diffusers():
    assert relative_error(*pair(sd1.UNET), (32, 32), tokens=77) <= BOUND


def test_gradients_equal_diffusers():
    theirs, ours = pair(SMALL)
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 5, 48)
    theirs(x, t, context).sample.square().sum().backward()
    ours(x, t, ours.project(Conditioning(context))).square().sum().backward()
    expected = {name: weight.grad for name, weight in theirs.named_parameters()}
    for name, weight in ours.named_parameters():
        assert weight.grad is not None, name
        scale = expected[name].norm()
        assert (weight.grad - expected[name]).norm() <= 1e-4 * scale + 1e-6, name
