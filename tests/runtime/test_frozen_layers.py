"""Frozen layers with prepared weights give the plain layers' outputs and gradients, and leave everything else alone."""

import copy

import pytest
import torch
from torch import nn

from latent_diffusion.runtime.cpu import columns as small_maps
from latent_diffusion.runtime.cpu.frozen_layers import (
    FrozenColumns,
    FrozenConv2d,
    FrozenLinear,
    FrozenWinograd,
    freeze_layers,
    winograd_works,
)

BUILT = pytest.mark.skipif(not winograd_works(), reason="no compiled kernels")


def layer_and_twin(layer):
    plain = layer.requires_grad_(False)
    fast = copy.deepcopy(plain)
    freeze_layers(fast, rounded=True, multiplied_less=True)
    return plain, fast


def both(layer, x):
    """Output and input gradient of a layer."""
    x = x.detach().clone().requires_grad_()
    made = layer(x)
    gradient = torch.randn(made.shape, generator=torch.Generator().manual_seed(1)).to(made)
    return made, *torch.autograd.grad(made, x, gradient)


@BUILT
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(1, 32, 8, 8), (3, 32, 7, 5), (2, 32, 1, 9)])
def test_winograd_both_ways(size, bias):
    plain, fast = layer_and_twin(nn.Conv2d(32, 64, 3, padding=1, bias=bias))
    assert type(fast) is FrozenWinograd
    x = torch.randn(*size)
    for found, wanted in zip(both(fast, x), both(copy.deepcopy(plain).double(), x.double()), strict=True):
        assert (found - wanted).norm() <= 2e-6 * wanted.norm()


@pytest.mark.parametrize(
    "layer,size",
    [
        (nn.Conv2d(32, 64, 3, padding=1), (2, 32, 7, 6)),
        (nn.Conv2d(20, 36, 3, stride=2, padding=1), (2, 20, 7, 6)),
        (nn.Linear(20, 36, bias=False), (3, 50, 20)),
    ],
)
def test_weights_rounded_once_are_those_of_autocast_bit_for_bit(layer, size):
    plain, fast = layer_and_twin(layer)
    assert type(fast) in (FrozenLinear, FrozenConv2d, FrozenWinograd)
    x = torch.randn(*size)
    with torch.autocast("cpu", torch.bfloat16):
        for found, wanted in zip(both(fast, x), both(plain, x), strict=True):
            assert found.dtype == wanted.dtype and torch.equal(found, wanted)
    if not isinstance(fast, FrozenWinograd):
        assert torch.equal(fast(x), plain(x))


@pytest.mark.parametrize("layer", [nn.Conv2d(32, 64, 3, padding=1), nn.Linear(32, 64)])
def test_other_formats_and_trained_layers_stay_plain(layer):
    size = (2, 32, 6, 6) if isinstance(layer, nn.Conv2d) else (2, 32)
    plain, fast = layer_and_twin(layer)
    x = torch.randn(*size, dtype=torch.float64)
    assert all(torch.equal(a, b) for a, b in zip(both(fast.double(), x), both(plain.double(), x), strict=True))
    assert fast.float()(x[:0].float()).shape[0] == 0
    trained = nn.ModuleList([nn.Linear(8, 8), nn.Conv2d(32, 32, 3, padding=1)])
    freeze_layers(trained, rounded=True, multiplied_less=True)
    assert [type(layer) for layer in trained] == [nn.Linear, nn.Conv2d]


def test_parameters_keys_and_copies_stay():
    plain, fast = layer_and_twin(nn.Conv2d(32, 32, 3, padding=1))
    x = torch.randn(1, 32, 6, 6)
    fast(x)
    assert fast.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(fast.weight, plain.weight) and not fast.weight.requires_grad
    assert torch.equal(copy.deepcopy(fast)(x), fast(x))


@pytest.mark.parametrize("rounded", [False, True])
def test_a_copy_with_another_weight_computes_with_it(rounded):
    from latent_diffusion.nn.shared_copy import shared_copy

    layer = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1)).requires_grad_(False)
    x = torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    freeze_layers(layer, rounded=rounded, multiplied_less=not rounded)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=rounded):
        before = layer(x)  # prepares the weight
        twin = shared_copy(layer)
        twin[0].weight = nn.Parameter(2 * layer[0].weight, requires_grad=False)
        wanted = before + before - layer[0].bias.to(before)[:, None, None]
        torch.testing.assert_close(twin(x), wanted, rtol=1e-2 if rounded else 1e-4, atol=1e-2 if rounded else 1e-4)
        assert torch.equal(layer(x), before)


@pytest.mark.parametrize("batch", [1, 3])
def test_small_maps_by_one_product_agree_with_float32_as_oneDNN_does(batch, monkeypatch):
    monkeypatch.setattr(small_maps, "FEWEST_WEIGHTS", 0)
    plain = nn.Conv2d(96, 64, 3, padding=1).requires_grad_(False)
    fast, x = copy.deepcopy(plain), torch.randn(batch, 96, 4, 5)
    freeze_layers(fast, rounded=True, multiplied_less=False, columns=True)
    assert type(fast) is FrozenColumns and not small_maps.pays(torch.empty(1, 96, 9, 8), 64)
    wanted = both(copy.deepcopy(plain), x)
    with torch.autocast("cpu", torch.bfloat16):
        found, usual = both(fast, x), both(plain, x)
    assert type(found[0].grad_fn).__name__ != type(usual[0].grad_fn).__name__
    for ours, theirs, exact in zip(found, usual, wanted, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == exact.shape
        assert (ours.float() - exact).norm() <= max(1.5 * (theirs.float() - exact).norm(), 3e-3 * exact.norm())
