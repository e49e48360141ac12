"""A U-Net that reads another text encoder: states that a linear map gives back are read as the old ones were."""

import pytest
import torch

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.families import tiny
from latent_diffusion.models.unet import UNet
from scripts.fold_text_states import explained, fold, least_squares

WIDTH = tiny.UNET.cross_attention_dim


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet(tiny.UNET).double().eval()


def predicted(unet, states):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(states), tiny.UNET.in_channels, 8, 8, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        return unet(x, torch.full((len(states),), 300), unet.project(Conditioning(context=states)))


def test_states_moved_by_a_linear_map_are_read_as_before(unet):
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(3, 5, WIDTH, generator=generator, dtype=torch.float64)
    moved = states @ torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    wanted = predicted(unet, states)
    fold(unet, torch.linalg.lstsq(moved.flatten(0, 1), states.flatten(0, 1)).solution)
    assert (predicted(unet, moved) - wanted).abs().max() < 1e-9
    assert (predicted(unet, states) - wanted).abs().max() > 1e-3, "the weights did change"


def test_the_map_is_the_least_squares_one_and_explains_what_it_can():
    generator = torch.Generator().manual_seed(3)
    given = torch.randn(2000, WIDTH, generator=generator, dtype=torch.float64)
    map_ = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    noise = torch.randn(2000, WIDTH, generator=generator, dtype=torch.float64)
    wanted = given @ map_ + noise
    found = least_squares(given, wanted)
    assert (found - map_).abs().max() < 0.15, "up to the noise and a slight ridge"
    share = 1 - noise.square().sum() / (wanted - wanted.mean(0)).square().sum()
    assert explained(given @ found, wanted) == pytest.approx(float(share), abs=0.02)
    assert explained(wanted, wanted) == 1
    assert explained(given, wanted) < explained(given @ found, wanted)
