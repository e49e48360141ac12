"""Attention kernels by name: all give the formula's values, and one that does not work here is an error."""

import subprocess
import sys
import types

import pytest
import torch

from latent_diffusion.errors import ConfigError, ResourceError
from latent_diffusion.families import tiny
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.unet import UNet
from latent_diffusion.nn.attention import Attention, ImageAttention, automatic, causal, sdpa, written_out
from latent_diffusion.runtime import attention_kernels as runtime_attention
from latent_diffusion.runtime.attention_kernels import BACKENDS, describe_auto, head_widths, load_kernel, set_kernel
from latent_diffusion.runtime.cpu.native.attention import attend

CPU = torch.device("cpu")


@pytest.fixture
def unet():
    return UNet(tiny.UNET)


def install(monkeypatch, kernel):
    """Put a library named xformers in the way, with this attention; (B, L, N, d) as in the real one."""
    ops = types.ModuleType("xformers.ops")
    ops.memory_efficient_attention = kernel
    package = types.ModuleType("xformers")
    package.ops = ops
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)


def theirs(q, k, v):
    return written_out(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


@pytest.mark.parametrize("backend", ["auto", "sdpa", "math"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kernel_gives_what_the_formula_gives(backend, dtype):
    q, k, v = (torch.randn(2, 3, length, 8, dtype=dtype) for length in (10, 7, 7))
    found, wanted = load_kernel(backend, CPU, dtype)(q, k, v).float(), written_out(q.float(), k.float(), v.float())
    assert (found - wanted).abs().max() <= (1e-6 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize(
    ("backend", "fast", "kernel"),
    [("auto", True, attend), ("auto", False, automatic), ("sdpa", True, sdpa), ("math", True, written_out)],
)
def test_the_kernel_reaches_every_attention(unet, backend, fast, kernel, monkeypatch):
    monkeypatch.setattr(runtime_attention, "attends", lambda dtype: True)
    models = (unet, AutoencoderKL(tiny.AUTOENCODER))
    for model in models:
        set_kernel(model, backend, CPU, torch.float32, fast=fast)
    layers = [m for model in models for m in model.modules() if isinstance(m, Attention | ImageAttention)]
    assert layers and all(layer.kernel is kernel for layer in layers)
    assert head_widths(unet) == {c // n for c, n in zip(tiny.UNET.block_out_channels, tiny.UNET.num_attention_heads)}


def test_an_unknown_name(unet):
    with pytest.raises(ConfigError, match=r"unknown attention 'spda'.*did you mean 'sdpa'"):
        set_kernel(unet, "spda", CPU, torch.float32)


def test_xformers_that_is_not_installed(unet, monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(ResourceError, match="'xformers' cannot be imported"):
        set_kernel(unet, "xformers", CPU, torch.float32)


def test_xformers_that_works(unet, monkeypatch):
    install(monkeypatch, theirs)
    set_kernel(unet, "xformers", CPU, torch.float32)
    q, k, v = (torch.randn(1, 2, 5, 8) for _ in range(3))
    kernel = next(m.kernel for m in unet.modules() if isinstance(m, Attention))
    assert torch.equal(kernel(q, k, v), written_out(q, k, v))


def not_here(q, k, v):
    raise NotImplementedError("No operator found for `memory_efficient_attention_forward`\nlong list")


@pytest.mark.parametrize(
    ("kernel", "words"),
    [(not_here, "No operator found"), (lambda q, k, v: q * 0, "wrong values"), (lambda q, k, v: v, "wrong values")],
)
def test_xformers_that_is_there_and_does_not_work(unet, monkeypatch, kernel, words):
    install(monkeypatch, kernel)
    with pytest.raises(ResourceError, match=words) as error:
        set_kernel(unet, "xformers", CPU, torch.float32)
    assert "\n" not in str(error.value) and "heads of" in str(error.value)
    assert all(m.kernel is automatic for m in unet.modules() if isinstance(m, Attention)), "nothing was set"


def test_auto_says_what_it_took(monkeypatch):
    monkeypatch.setattr(runtime_attention, "attends", lambda dtype: dtype == torch.bfloat16)
    assert describe_auto(CPU, torch.float32) == "sdpa"
    assert describe_auto(CPU, torch.bfloat16) == "native"
    assert "math" in describe_auto(CPU, torch.bfloat16, fast=False)
    assert describe_auto(torch.device("cuda"), torch.bfloat16) == "sdpa"


def test_the_native_kernel_by_name_where_it_cannot_be(unet, monkeypatch):
    monkeypatch.setattr(runtime_attention, "attends", lambda dtype: False)
    with pytest.raises(ResourceError, match=r"'native' is not available on cpu in float32.*compiler"):
        set_kernel(unet, "native", CPU, torch.float32)


def test_xformers_and_triton_are_imported_only_where_they_are_used():
    code = """
import sys, torch
class Trap:
    def find_spec(self, name, *_):
        assert not name.startswith("xformers"), "imported without being named"
sys.meta_path.insert(0, Trap())
import latent_diffusion.runtime.cuda.cuda_speedup
from latent_diffusion.families import tiny
from latent_diffusion.models.unet import UNet
from latent_diffusion.runtime.attention_kernels import set_kernel
assert "latent_diffusion.runtime.cuda.triton_geglu" not in sys.modules
for name in ("auto", "sdpa", "math"):
    set_kernel(UNet(tiny.UNET), name, torch.device("cpu"), torch.float32)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert set(BACKENDS) == {"auto", "native", "sdpa", "math", "xformers"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_attention_and_its_gradients_are_those_of_the_formula(dtype):
    q, k, v, gradient = (torch.randn(2, 3, 9, 8, dtype=dtype) for _ in range(4))
    later = torch.ones(9, 9, dtype=torch.bool).triu(1)

    def formula(q, k, v):
        return torch.softmax((q @ k.mT / 8**0.5).masked_fill(later, float("-inf")), dim=-1) @ v

    results = []
    for attend_, wide in ((causal, False), (formula, True)):
        inputs = [(x.double() if wide else x).clone().requires_grad_() for x in (q, k, v)]
        out = attend_(*inputs)
        results.append([out, *torch.autograd.grad(out, inputs, gradient.to(out.dtype))])
        with torch.no_grad():
            results[-1].append(attend_(*inputs))
    for found, wanted in zip(*results, strict=True):
        assert (found - wanted).abs().max() <= (1e-5 if dtype == torch.float32 else 6e-2)
    assert (results[0][0][:, :, 0] == v[:, :, 0]).all(), "the first token sees itself alone"
