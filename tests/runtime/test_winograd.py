"""Convolutions with fewer multiplications: the plain convolution's numbers, for every size, batch and thread count."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latent_diffusion.families import emoji
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.nn.resnet import Upsample
from latent_diffusion.runtime.cpu import packed_layers, packing
from latent_diffusion.runtime.cpu.native import winograd
from latent_diffusion.runtime.cpu.packed_layers import (
    DoublingConv2d,
    PackedConv2d,
    PackedUpsample,
    PhasesConv2d,
    WinogradConv2d,
)
from latent_diffusion.runtime.cpu.packing import pack, unpack

compiled = pytest.mark.usefixtures("level")
SIZES = [(1, 1, 1), (1, 2, 3), (2, 5, 4), (3, 7, 9), (1, 16, 31), (1, 1, 40)]  # B, H, W


@pytest.fixture
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def draw(*size):
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


def exact(x, weight, bias, doubled):
    x = F.interpolate(x, scale_factor=2.0, mode="nearest") if doubled else x
    return F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)


@compiled
@pytest.mark.parametrize(
    ("inputs", "outputs", "doubled", "threads"),
    [
        (16, 32, False, 1),
        (16, 32, True, 2),
        (48, 64, False, 2),
        (48, 64, True, 5),
        (272, 96, False, 5),
        (272, 96, True, 1),
    ],
    indirect=["threads"],
)
def test_numbers(doubled, inputs, outputs, threads):
    weight, bias = draw(outputs, inputs, 3, 3), draw(outputs)
    packed = winograd.panels(weight, doubled=doubled)
    for batch, height, width in SIZES:
        x = draw(batch, inputs, height, width)
        more = draw(batch, outputs, *(2 * n if doubled else n for n in (height, width)))
        for shift, added in ((bias, None), (None, more)):
            found = winograd.convolve(x, packed, shift, outputs, added, doubled=doubled)
            wanted = exact(x, weight, shift, doubled) + (0.0 if added is None else added)
            assert found.shape == wanted.shape and found.is_contiguous(memory_format=torch.channels_last)
            assert (found - wanted).norm() <= 2e-6 * wanted.norm(), x.shape


@compiled
@pytest.mark.parametrize("doubled", [False, True])
def test_a_picture_is_the_same_in_any_batch_and_with_any_number_of_threads(doubled):
    x, weight = draw(5, 288, 9, 11), draw(64, 288, 3, 3)
    packed, before = winograd.panels(weight, doubled=doubled), torch.get_num_threads()
    try:
        together = []
        for threads in (1, 2, 3, 64):
            torch.set_num_threads(threads)
            together.append(winograd.convolve(x, packed, None, 64, doubled=doubled))
            assert torch.equal(winograd.panels(weight, doubled=doubled), packed)
        alone = [winograd.convolve(x[i : i + 1], packed, None, 64, doubled=doubled) for i in range(5)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(other, together[0]) for other in (*together, torch.cat(alone)))


@compiled
def test_nothing_outside_is_used():
    memory, weight = torch.full((3, 5, 6, 16), float("nan")), draw(32, 16, 3, 3)
    memory[1:2] = draw(1, 5, 6, 16)
    x = memory[1:2].permute(0, 3, 1, 2)  # not a number before and behind
    for doubled in (False, True):
        found = winograd.convolve(x, winograd.panels(weight, doubled=doubled), None, 32, doubled=doubled)
        assert torch.allclose(found, exact(x, weight, None, doubled).float(), atol=1e-4)


@compiled
def test_what_is_added_has_the_size_of_the_result():
    x, packed = draw(1, 16, 4, 4), winograd.panels(draw(32, 16, 3, 3), doubled=False)
    for wrong in (draw(1, 32, 4, 3), draw(1, 32, 4, 4).double()):
        with pytest.raises(ValueError, match="is added to"):
            winograd.convolve(x, packed, None, 32, wrong, doubled=False)


def test_the_trial_is_honest(monkeypatch):
    assert not winograd.divides(4, 32) and not winograd.divides(32, 4) and winograd.divides(16, 32)
    monkeypatch.setattr(winograd, "find", lambda name: None)
    assert not winograd.pays(doubled=False) and not winograd.pays(doubled=True)


@compiled
@torch.no_grad()
def test_layers_pack_and_unpack_bit_for_bit(chosen):
    torch.manual_seed(0)
    conv, up = nn.Conv2d(32, 64, 3, padding=1), Upsample(32)
    x = draw(2, 32, 6, 5)
    wanted = conv(x), up(x), up(x, (11, 10))
    before = {name: t.clone() for name, t in up.state_dict().items()}, conv.weight.clone()
    net = nn.ModuleList([conv, up])
    pack(net)
    assert type(conv) is WinogradConv2d and type(up) is PackedUpsample and type(up.conv) is DoublingConv2d
    found = conv(x), up(x), up(x, (11, 10))
    assert all((a - b).norm() <= 2e-6 * b.norm() for a, b in zip(found, wanted))
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert type(twin[0]) is nn.Conv2d and type(twin[1]) is Upsample and type(twin[1].conv) is nn.Conv2d
        assert torch.equal(twin[1](x), wanted[1])
    assert torch.equal(conv.weight, before[1]) and list(up.state_dict()) == list(before[0])
    unpack(net)
    assert type(conv) is nn.Conv2d and type(up) is Upsample and type(up.conv) is nn.Conv2d
    assert all(torch.equal(up.state_dict()[name], t) for name, t in before[0].items())
    assert not hasattr(conv, "panels") and torch.equal(conv(x), wanted[0])


@compiled
def test_a_small_map_makes_no_weights(chosen, monkeypatch):
    monkeypatch.setattr(packed_layers, "SMALLEST", 65)
    monkeypatch.setattr(packed_layers, "FEW", 0)
    conv = nn.Conv2d(32, 32, 3, padding=1)
    x, wanted = draw(1, 32, 8, 8), conv(draw(1, 32, 8, 8))
    pack(conv)
    assert type(conv) is WinogradConv2d
    assert torch.allclose(conv(x), wanted, atol=1e-5) and "panels" not in vars(conv)


@compiled
def test_weights_are_made_when_needed(chosen):
    conv = nn.Conv2d(32, 32, 3, padding=1)
    pack(conv)
    assert not hasattr(conv, "panels")
    conv(draw(1, 32, 4, 4))
    assert vars(conv)["panels"].numel() == 16 * 32 * 32
    conv.load_state_dict(nn.Conv2d(32, 32, 3).state_dict())
    assert type(conv) is nn.Conv2d and not hasattr(conv, "panels"), "the old weights are gone"


def test_which_layers_are_chosen(chosen):
    def kind(*args, **settings):
        layer = nn.Conv2d(*args, **settings)
        pack(layer)
        return type(layer)

    assert kind(32, 32, 3, padding=1) is WinogradConv2d and kind(1280, 640, 3, padding=1) is WinogradConv2d
    assert kind(320, 960, 3, padding=1) is PackedConv2d and kind(1920, 640, 3, padding=1) is PackedConv2d
    for other in ({"padding": 0}, {"padding": 1, "stride": 2}, {"padding": 2, "dilation": 2}):
        assert kind(32, 32, 3, **other) is PackedConv2d
    assert kind(32, 32, 5, padding=1) is PackedConv2d and kind(24, 32, 3, padding=1) is PackedConv2d
    half = nn.Conv2d(32, 32, 3, padding=1).bfloat16()
    pack(half)
    assert type(half) is (PackedConv2d if packing.reorders(torch.bfloat16) else nn.Conv2d)


def test_what_the_kernel_does_not_take_is_computed_plainly(chosen):
    net = nn.ModuleList([nn.Conv2d(32, 32, 3, padding=1), Upsample(32)])
    x = draw(1, 32, 5, 4).requires_grad_()
    wanted = [torch.autograd.grad(layer(x).square().sum(), x)[0] for layer in net]
    pack(net)
    found = [torch.autograd.grad(layer(x).square().sum(), x)[0] for layer in net]
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(found, wanted))
    with torch.no_grad():
        assert net[0](x[:0]).shape == (0, 32, 5, 4)
        for wrong in (x[:, :16], x.double()):
            with pytest.raises(RuntimeError):
                net[0](wrong)


def test_without_kernels_the_packed_convolution_is_taken(monkeypatch):
    monkeypatch.setattr(packing, "conv_packs", lambda dtype: True)
    monkeypatch.setattr(winograd, "find", lambda name: None)
    net = nn.ModuleList([nn.Conv2d(32, 32, 3, padding=1), Upsample(32)])
    x = draw(1, 32, 4, 4)
    with torch.no_grad():
        wanted = [layer(x) for layer in net]
        pack(net)
        assert type(net[0]) is PackedConv2d and type(net[1].conv) in (PackedConv2d, PhasesConv2d)
        assert all((layer(x) - y).norm() <= 1e-6 * y.norm() for layer, y in zip(net, wanted))


@compiled
@torch.no_grad()
def test_whole_networks(chosen):
    torch.manual_seed(0)
    net = AutoencoderKL(emoji.AUTOENCODER).eval()
    z = draw(2, net.config.latent_channels, 6, 5)
    wanted = net.decode(z)
    pack(net)
    assert any(isinstance(layer, WinogradConv2d) for layer in net.modules())
    assert (net.decode(z) - wanted).norm() <= 1e-5 * wanted.norm()
