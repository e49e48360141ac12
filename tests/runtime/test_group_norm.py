"""GroupNorm and SiLU in one: the plain operations' numbers, better; the same for a picture in any batch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latent_diffusion.families import emoji
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.nn.resnet import ResnetBlock
from latent_diffusion.runtime.cpu.native import group_norm
from latent_diffusion.runtime.cpu.packed_layers import NormedResnetBlock, WinogradConv2d
from latent_diffusion.runtime.cpu.packing import pack, unpack

compiled = pytest.mark.usefixtures("level")


@pytest.fixture
def chosen(chosen, monkeypatch):
    """Choose the norms in C too."""
    monkeypatch.setattr(group_norm, "pays", lambda dtype: True)


def draw(*size):
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


def norm_of(channels, groups, dtype=torch.float32):
    norm = nn.GroupNorm(groups, channels, eps=1e-5)
    norm.load_state_dict({"weight": draw(channels), "bias": draw(channels, 1)[:, 0]})
    return norm.to(dtype).requires_grad_(False)


def exact(x, norm, shift):
    x = x.double() if shift is None else x.double() + shift.double()[:, :, None, None]
    return F.silu(F.group_norm(x, norm.num_groups, norm.weight.double(), norm.bias.double(), norm.eps))


@compiled
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 5e-7), (torch.bfloat16, 3e-3)])
@pytest.mark.parametrize("size", [(1, 16, 1, 1), (2, 32, 5, 3), (1, 144, 20, 21), (3, 320, 7, 40)])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_numbers(dtype, error, size, mean):
    x = (draw(*size) + mean).to(dtype)
    norm = norm_of(size[1], 4, dtype)
    for shift in (None, draw(*size[:2]).to(dtype)):
        found = group_norm.norm_silu(x, norm, shift)
        assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
        wanted = exact(x, norm, shift)
        assert (found - wanted).norm() <= error * max(1.0, mean) * wanted.norm() + 1e-6


@compiled
def test_far_values():
    x = torch.tensor([-1e4, -90.0, -1.0, -0.0, 0.0, 1.0, 90.0, 1e4]).repeat(2)[None, :, None, None]
    norm = nn.GroupNorm(16, 16).requires_grad_(False)
    norm.weight.zero_()
    norm.bias.copy_(x.flatten())
    assert torch.allclose(group_norm.norm_silu(x, norm).flatten(), F.silu(norm.bias), rtol=1e-6, atol=1e-30)


@compiled
def test_a_picture_is_the_same_in_any_batch_and_with_any_number_of_threads():
    x, norm, before = draw(3, 48, 30, 31), norm_of(48, 6), torch.get_num_threads()
    try:
        together = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            together.append(group_norm.norm_silu(x, norm))
        alone = torch.cat([group_norm.norm_silu(x[i : i + 1], norm) for i in range(3)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(other, together[0]) for other in (*together, alone))


def block(dtype, inputs=32, outputs=64):
    torch.manual_seed(0)
    return ResnetBlock(inputs, outputs, groups=8, eps=1e-5, time_width=12).to(dtype).eval()


@compiled
@torch.no_grad()
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("inputs", [32, 64])
def test_a_block_packs_and_unpacks(chosen, dtype, error, inputs):
    layer, x, time = block(dtype, inputs), draw(2, inputs, 6, 5).to(dtype), draw(2, 12).to(dtype)
    wanted, before = layer(x, time), {name: t.clone() for name, t in layer.state_dict().items()}
    pack(layer)
    assert type(layer) is NormedResnetBlock
    assert isinstance(layer.conv2, WinogradConv2d) == (dtype == torch.float32)
    assert (layer(x, time) - wanted).float().norm() <= error * wanted.float().norm()
    assert type(copy.deepcopy(layer)) is ResnetBlock
    assert all(torch.equal(layer.state_dict()[name], t) for name, t in before.items())
    unpack(layer)
    assert type(layer) is ResnetBlock and list(layer.state_dict()) == list(before)
    assert torch.equal(layer(x, time), wanted)


def test_gradients_come_from_the_plain_operations(chosen):
    layer, x, time = block(torch.float32), draw(1, 32, 4, 4).requires_grad_(), draw(1, 12)
    wanted = torch.autograd.grad(layer(x, time).square().sum(), x)[0]
    pack(layer)
    assert torch.allclose(torch.autograd.grad(layer(x, time).square().sum(), x)[0], wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_odd_channels_are_computed_plainly(chosen):
    layer, x, time = block(torch.float32, 24, 40), draw(1, 24, 4, 4), draw(1, 12)
    wanted = layer(x, time)
    pack(layer)
    assert type(layer) is NormedResnetBlock and (layer(x, time) - wanted).norm() <= 1e-6 * wanted.norm()


def test_without_kernels_blocks_stay(monkeypatch):
    monkeypatch.setattr(group_norm, "find", lambda name: None)
    layer = block(torch.float32)
    pack(layer)
    assert type(layer) is ResnetBlock and not group_norm.pays(torch.float32) and not group_norm.pays(torch.float64)


@compiled
@torch.no_grad()
def test_a_whole_decoder(chosen):
    torch.manual_seed(0)
    net, z = AutoencoderKL(emoji.AUTOENCODER).eval(), draw(1, 4, 8, 8)
    wanted = copy.deepcopy(net).double().decode(z.double())
    pack(net)
    assert (net.decode(z) - wanted).norm() <= 5e-6 * wanted.norm()
