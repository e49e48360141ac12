"""The faster layers of training compute what the plain ones do, and leave weights and their names alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.families import tiny
from latent_diffusion.models.unet import UNet
from latent_diffusion.nn.attention import Attention
from latent_diffusion.nn.transformer import gated_gelu
from latent_diffusion.runtime.cpu import training_kernels
from latent_diffusion.runtime.cpu.native import training_attention
from latent_diffusion.runtime.cpu.training_kernels import (
    PLAIN,
    ConvolvedLinear,
    TrainingKernels,
    choose_kernels,
    install,
    works,
)

BUILT = training_attention.available()
FAST = TrainingKernels(native_attention=BUILT, native_gelu=BUILT, convolved_linear=True)


def layer_and_twin(bias=True):
    torch.manual_seed(0)
    plain, fast = nn.Linear(24, 40, bias=bias), nn.Linear(24, 40, bias=bias)
    fast.load_state_dict(plain.state_dict())
    install(fast, FAST)
    assert type(fast) is ConvolvedLinear
    return plain, fast


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(300,), (2, 100), (3, 8, 16)])
def test_a_linear_layer_as_a_convolution(bias, size):
    plain, fast = layer_and_twin(bias)
    x, gradient = torch.randn(*size, 24, requires_grad=True), torch.randn(*size, 40)
    found = [fast(x), *torch.autograd.grad(fast(x), [x, *fast.parameters()], gradient)]
    wanted = [plain(x), *torch.autograd.grad(plain(x), [x, *plain.parameters()], gradient)]
    for a, b in zip(found, wanted):
        assert a.shape == b.shape and (a - b).norm() <= 1e-6 * b.norm()


def test_layers_that_would_not_gain_stay_plain():
    plain, fast = layer_and_twin()
    few, many = torch.randn(4, 24), torch.randn(500, 24)
    assert torch.equal(fast(few), plain(few))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fast(many), plain(many))
    assert torch.equal(fast.double()(many.double()), plain.double()(many.double()))


def losses(kernels, precision=torch.float32, checkpointing=False, steps=6):
    torch.manual_seed(0)
    unet = UNet(tiny.UNET).train()
    unet.enable_gradient_checkpointing(checkpointing)
    names = list(unet.state_dict())
    install(unet, kernels)
    assert list(unet.state_dict()) == names
    optimizer, seen = torch.optim.AdamW(unet.parameters(), lr=1e-3), []
    for _ in range(steps):
        x, noise = torch.randn(2, 2, tiny.UNET.in_channels, 16, 16)
        context = torch.randn(2, 77, tiny.UNET.cross_attention_dim)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            made = unet(x, torch.tensor([10.0, 700.0]), unet.project(Conditioning(context)))
            loss = F.mse_loss(made.float(), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(loss.item())
    return seen


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)])
def test_a_network_learns_the_same(precision, tolerance):
    assert losses(FAST, precision) == pytest.approx(losses(PLAIN, precision), rel=tolerance)


def test_gradient_checkpointing_gives_the_same_bits():
    assert losses(FAST, checkpointing=True) == losses(FAST)


def test_plain_where_nothing_is_to_gain():
    assert choose_kernels("float32", torch.device("cuda")) == PLAIN
    assert choose_kernels("float64", torch.device("cpu")) == PLAIN
    attention = Attention(16, 2)
    kernel = attention.kernel
    install(attention, PLAIN)
    assert attention.kernel is kernel and type(attention.to_q) is nn.Linear


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_choice_does_not_hang_on_the_clock(precision, monkeypatch):
    for capability in ("AVX512", "AVX2"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda found=capability: found)
        convolved = precision == "float32" and capability == "AVX512"
        less = BUILT and precision == "float32"
        narrow = precision == "bfloat16"
        expected = TrainingKernels(BUILT, BUILT, convolved, winograd=less, rounded_once=narrow, columns=narrow)
        before = torch.get_rng_state()
        assert choose_kernels(precision, torch.device("cpu")) == expected
        assert torch.equal(torch.get_rng_state(), before), "the choice drew from the process's random state"


def test_wrong_numbers_are_not_chosen(monkeypatch):
    monkeypatch.setattr(training_kernels.gated, "gated", lambda x: 1.01 * gated_gelu(x))
    assert not choose_kernels("float32", torch.device("cpu")).native_gelu


def test_kernels_that_were_not_built_do_not_work(monkeypatch):
    monkeypatch.setattr(training_attention, "available", lambda: False)
    assert works(PLAIN) and not works(TrainingKernels(native_attention=True))
    assert not choose_kernels("float32", torch.device("cpu")).native_attention
