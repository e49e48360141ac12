"""3x3 convolutions of training in C: the formula's value and gradients at each level; the rest is computed plainly."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latent_diffusion.runtime.cpu.native import training_convolution
from latent_diffusion.runtime.cpu.native.training_convolution import FasterConv2d, divisible
from latent_diffusion.runtime.cpu.training_kernels import TrainingKernels, install

native = pytest.mark.usefixtures("level")


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    """Let small batches be computed in C too."""
    monkeypatch.setattr(training_convolution, "FEW_PIXELS", 0)


def faster(inputs, outputs, bias=True):
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
    install(conv, TrainingKernels(winograd=True))
    assert type(conv) is FasterConv2d
    return conv


def with_gradients(way, tensors, gradient):
    made = way(*tensors)
    return [made.detach(), *torch.autograd.grad(made, tensors, gradient)]


@native
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 7, 9), (2, 16, 5)])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 64), (96, 32)])
def test_values_and_gradients_are_those_of_the_formula(size, inputs, outputs, bias):
    conv, (batch, height, width) = faster(inputs, outputs, bias), size
    x = torch.randn(batch, inputs, height, width, requires_grad=True)
    gradient = torch.randn(batch, outputs, height, width)
    given = [x, *conv.parameters()]
    exact = [t.detach().double().requires_grad_() for t in given]
    wanted = with_gradients(lambda x, w, b=None: F.conv2d(x, w, b, padding=1), exact, gradient.double())
    for found, right in zip(with_gradients(lambda x, *_: conv(x), given, gradient), wanted, strict=True):
        assert (found - right).norm() <= 2e-6 * right.norm()


@native
def test_only_the_gradients_that_are_asked_for_are_made():
    conv, x = faster(32, 32).requires_grad_(False), torch.randn(1, 32, 6, 6, requires_grad=True)
    conv(x).sum().backward()
    assert x.grad is not None and conv.weight.grad is None
    conv.requires_grad_(True)
    conv(x.detach()).sum().backward()
    assert conv.weight.grad is not None and conv.bias is not None and conv.bias.grad is not None


@native
def test_nan_is_not_lost():
    conv, x = faster(32, 32), torch.randn(1, 32, 8, 8)
    x[0, 3, 5, 2] = float("nan")
    assert conv(x)[0, :, 4:7, 1:4].isnan().all() and conv(x)[0, :, :3].isfinite().all()


@native
def test_the_same_weights_under_the_same_names():
    conv = faster(32, 64)
    assert list(conv.state_dict()) == ["weight", "bias"]
    before = conv.weight.detach().clone()
    conv(torch.randn(1, 32, 4, 4)).sum().backward()
    torch.optim.SGD(conv.parameters(), 0.1).step()
    x = torch.randn(1, 32, 4, 4)
    assert not torch.equal(conv.weight, before)
    assert torch.allclose(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1), atol=1e-5)


def test_everything_else_is_computed_plainly():
    for other in (
        nn.Conv2d(32, 32, 3),
        nn.Conv2d(32, 32, 3, padding=1, stride=2),
        nn.Conv2d(32, 32, 1),
        nn.Conv2d(4, 32, 3, padding=1),
        nn.Conv2d(32, 48, 3, padding=1),
        nn.Conv2d(32, 32, 3, padding=1, groups=2),
        nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect"),
    ):
        assert not divisible(other)
    conv, x = faster(32, 32), torch.randn(2, 32, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
    assert torch.equal(conv.double()(x.double()), F.conv2d(x.double(), conv.weight, conv.bias, padding=1))
