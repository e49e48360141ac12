"""Our autoencoder against diffusers' with the same weights.

Bound 1e-5 relative: float32 sums may be ordered differently.
"""

import dataclasses

import pytest
import torch

from latent_diffusion.checkpoint.folder.network_config import autoencoder_values
from latent_diffusion.families import emoji, sd1
from latent_diffusion.models.autoencoder import AutoencoderConfig, AutoencoderKL

BOUND = 1e-5
SMALL = AutoencoderConfig(block_out_channels=(32, 64), layers_per_block=2, latent_channels=4)
CASES = {
    "two levels": (SMALL, (16, 24)),
    "bundled": (emoji.AUTOENCODER, (32, 32)),
    "no attention, small groups": (
        AutoencoderConfig((16, 32, 48), 1, 4, norm_num_groups=8, mid_block_add_attention=False),
        (16, 32),
    ),
    "16 channels, shifted, no 1x1 convolutions": (
        dataclasses.replace(
            SMALL,
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        (16, 16),
    ),
    "one level": (AutoencoderConfig((32,), 1, 3), (8, 8)),
}


def pair(config: AutoencoderConfig):
    """Return diffusers' autoencoder and ours with the same random weights, all of them perturbed."""
    from diffusers import AutoencoderKL as Theirs

    torch.manual_seed(0)
    theirs = Theirs.from_config(autoencoder_values(config)).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.02)
    ours = AutoencoderKL(config)
    ours.load_state_dict(theirs.state_dict())  # strict: the names are diffusers'
    return theirs, ours.eval()


def error(found, expected) -> float:
    assert found.shape == expected.shape
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_equals_diffusers(name):
    config, size = CASES[name]
    theirs, ours = pair(config)
    images = torch.rand(2, 3, *size) * 2 - 1
    expected, posterior = theirs.encode(images).latent_dist, ours.encode(images)
    assert error(posterior.mean, expected.mean) <= BOUND
    assert error(posterior.logvar, expected.logvar) <= BOUND
    assert error(posterior.kl(), expected.kl()) <= BOUND
    noise = torch.randn_like(expected.mean)
    assert error(posterior.sample(noise), expected.mean + expected.std * noise) <= BOUND
    assert error(ours.decode(expected.mean), theirs.decode(expected.mean).sample) <= BOUND


def test_true_sd1_has_the_published_shapes():
    from diffusers import AutoencoderKL as Theirs

    with torch.device("meta"):
        theirs = Theirs.from_config(autoencoder_values(sd1.AUTOENCODER)).state_dict()
        ours = AutoencoderKL(sd1.AUTOENCODER).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert sum(v.numel() for v in ours.values()) == 83_653_863  # the published model's count


@torch.no_grad()
def test_latents_are_scaled_and_shifted():
    config, size = CASES["16 channels, shifted, no 1x1 convolutions"]
    _, ours = pair(config)
    images = torch.rand(1, 3, *size) * 2 - 1
    latents = ours.to_latents(images)
    assert torch.allclose(latents, (ours.encode(images).mean - 0.1159) * 0.3611)
    assert torch.allclose(ours.to_images(latents), ours.decode(ours.encode(images).mean), atol=1e-4)
    noise = torch.randn_like(latents)
    assert torch.allclose(ours.to_latents(images, noise), ours.scale(ours.encode(images).sample(noise)))
