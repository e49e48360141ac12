"""Properties of the autoencoder and the discriminator that do not need a reference."""

import pytest
import torch

from latent_diffusion.errors import ConfigError
from latent_diffusion.families import tiny
from latent_diffusion.models.autoencoder import AutoencoderConfig, AutoencoderKL
from latent_diffusion.models.discriminator import PatchDiscriminator


@pytest.fixture
def model():
    torch.manual_seed(0)
    return AutoencoderKL(tiny.AUTOENCODER)


def relative(found, expected) -> float:
    return ((found.float() - expected).norm() / expected.norm()).item()


def test_gradient_reaches_every_weight(model):
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    posterior = model.encode(images)
    made = model.decode(posterior.sample(torch.randn_like(posterior.mean)))
    ((made - images).square().flatten(1).sum(1) + posterior.kl()).sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name
    assert model.decoder.last_layer is model.decoder.conv_out.weight


def test_checkpointing_changes_memory_not_numbers(model):
    images = torch.rand(1, 3, 16, 16)
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        model.enable_gradient_checkpointing(enabled)
        model.decode(model.encode(images).mean).square().sum().backward()
        gradients.append([weight.grad.clone() for weight in model.decoder.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@torch.no_grad()
def test_batch_layout_and_precision(model):
    images = torch.rand(3, 3, 16, 24) * 2 - 1
    expected = model.to_images(model.to_latents(images))
    assert relative(model.to_images(model.to_latents(images[1:2])), expected[1:2]) <= 1e-5
    model.to(memory_format=torch.channels_last)
    assert relative(model.to_images(model.to_latents(images)), expected) <= 1e-5
    model.to(torch.bfloat16)
    assert relative(model.to_images(model.to_latents(images.bfloat16())), expected) <= 0.05


def test_factor_and_shapes(model):
    assert model.factor == 4
    latents = model.to_latents(torch.zeros(1, 3, 32, 16))
    assert latents.shape == (1, 4, 8, 4) and model.to_images(latents).shape == (1, 3, 32, 16)


def test_sizes_are_checked():
    with pytest.raises(ConfigError, match="norm_num_groups 32"):
        AutoencoderConfig(block_out_channels=(32, 40), layers_per_block=1, latent_channels=4)
    with pytest.raises(ConfigError, match="empty"):
        AutoencoderConfig(block_out_channels=(), layers_per_block=1, latent_channels=4)


def test_discriminator_judges_each_picture_alone():
    torch.manual_seed(0)
    judge = PatchDiscriminator(in_channels=3, width=16, layers=2)
    images = torch.rand(3, 3, 32, 32)
    logits = judge(images)
    assert logits.shape == (3, 1, 6, 6)
    assert relative(judge(images[:1]), logits[:1]) <= 1e-5
    logits.sum().backward()
    assert all(weight.grad is not None for weight in judge.parameters())
