"""The gated GELU in C and its gradient against the formula in float64."""

import pytest
import torch

from latent_diffusion.nn.transformer import FeedForward, GatedLinear, gated_gelu
from latent_diffusion.runtime.cpu import packing
from latent_diffusion.runtime.cpu.native.gated import drawn, gated
from latent_diffusion.runtime.cpu.packed_layers import OncePassedGate
from latent_diffusion.runtime.cpu.packing import pack, unpack

native = pytest.mark.usefixtures("level")


def with_gradient(function, x, gradient):
    leaf = x.detach().requires_grad_()
    made = function(leaf)
    return [made.detach(), *torch.autograd.grad(made, leaf, gradient)]


@native
@pytest.mark.parametrize("size", [(1, 2), (7, 34), (2, 5, 64), (300, 30)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-7), (torch.bfloat16, 3e-3)])
def test_value_and_gradient_are_those_of_the_formula(size, dtype, tolerance):
    generator = torch.Generator().manual_seed(1)
    x = (3 * torch.randn(size, generator=generator)).to(dtype)
    gradient = torch.randn(*size[:-1], size[-1] // 2, generator=generator).to(dtype)
    wanted = with_gradient(gated_gelu, x.double(), gradient.double())
    for found, exact in zip(with_gradient(gated, x, gradient), wanted):
        assert found.dtype == dtype and found.shape == exact.shape
        assert (found.double() - exact).norm() <= tolerance * exact.norm()


@native
def test_extremes_and_nan():
    gate = torch.tensor([-1e37, -40.0, -0.0, 0.0, 40.0, 1e30, float("nan")])
    x = torch.cat([torch.ones_like(gate), gate])
    y, dx = with_gradient(gated, x, torch.ones_like(gate))
    assert torch.allclose(y[:6], torch.tensor([0.0, 0.0, 0.0, 0.0, 40.0, 1e30])) and y[6].isnan()
    assert torch.allclose(dx[7:13], torch.tensor([0.0, 0.0, 0.5, 0.5, 1.0, 1.0])) and dx[13].isnan()


@native
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_a_packed_layer_computes_it_and_goes_back(monkeypatch, dtype, tolerance):
    monkeypatch.setattr(packing.gated, "pays", lambda dtype: True)
    layer, x = FeedForward(32).to(dtype).requires_grad_(False).eval(), torch.randn(2, 9, 32).to(dtype)
    keys, wanted = list(layer.state_dict()), layer(x)
    pack(layer)
    gate = layer.net[0]
    assert type(gate) is OncePassedGate and list(layer.state_dict()) == keys
    with torch.no_grad():
        plain = torch.nn.functional.linear(x, gate.proj.weight, gate.proj.bias)
        assert torch.equal(gate(x), drawn(gate.proj(x))) and (gate(x) - gated_gelu(plain)).norm() <= 1e-2 * plain.norm()
        assert (layer(x) - wanted).norm() <= tolerance * wanted.norm()
    leaf = x.clone().requires_grad_()
    layer(leaf).float().sum().backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all()
    unpack(layer)
    assert type(layer.net[0]) is GatedLinear and list(layer.state_dict()) == keys
    assert torch.equal(layer(x), wanted)


@native
def test_any_strides():
    x, gradient = torch.randn(6, 8).t(), torch.randn(3, 8).t()
    for a, b in zip(with_gradient(gated, x, gradient), with_gradient(gated, x.contiguous(), gradient.contiguous())):
        assert torch.equal(a, b)
    leaf = x.detach().requires_grad_()
    gated(leaf).sum().backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all()


def test_the_rest_goes_to_torch():
    x = torch.randn(3, 8, dtype=torch.float64)
    assert torch.equal(gated(x), gated_gelu(x))
    assert gated(torch.empty(0, 8)).shape == (0, 4)
