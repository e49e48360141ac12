"""The rebuilt network equals the model's own; Triton's kernels by its interpreter, and compiled where it can."""

import copy
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from latent_diffusion.adapters.forms import Update
from latent_diffusion.adapters.merge import adapted
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.families import tiny
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.models.unet import UNet
from latent_diffusion.nn.shared_copy import shared_copy
from latent_diffusion.runtime.cuda.cuda_speedup import FusedResnetBlock, JoinedAttention, fast_cuda, fuse
from latent_diffusion.runtime.cuda.fusions import PLAIN, choose_fusions
from latent_diffusion.runtime.working_autoencoder import WorkingAutoencoder


def make(kind, config):
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.05)
    return model


def small_unet(**values):
    levels = len(tiny.UNET.block_out_channels)
    return make(UNet, replace(tiny.UNET, block_out_channels=(16, 32, 32, 32)[:levels], norm_num_groups=8, **values))


def fused_copy(module, fusions):
    twin = shared_copy(module)
    fuse(twin, fusions)
    return twin


def asked(unet):
    torch.manual_seed(1)
    return (
        torch.randn(2, 4, 8, 8),
        torch.tensor([999.0, 3.0]),
        Conditioning(torch.randn(2, 5, unet.config.cross_attention_dim)),
    )


def answer(unet):
    x, t, cond = asked(unet)
    return unet(x, t, unet.project(cond))


def close(a, b, most=1e-5):
    return float((a - b).norm() / b.norm()) <= most


@pytest.mark.parametrize("linear", [False, True])
@torch.no_grad()
def test_the_unet_computes_what_it_did(linear):
    unet = small_unet(use_linear_projection=linear)
    fast = fused_copy(unet, PLAIN)
    kinds = {type(module) for module in fast.modules()}
    assert {FusedResnetBlock, JoinedAttention} <= kinds
    assert not kinds & {type(module) for module in unet.modules()} & {FusedResnetBlock, JoinedAttention}
    assert close(answer(fast), answer(unet))


@torch.no_grad()
def test_the_autoencoder_computes_what_it_did():
    model = make(AutoencoderKL, tiny.AUTOENCODER)
    fast = fused_copy(model, PLAIN)
    z, images = torch.randn(1, model.config.latent_channels, 8, 8), torch.rand(1, 3, 32, 32)
    assert close(fast.decode(z), model.decode(z))
    assert close(fast.encode(images).mean, model.encode(images).mean)
    for tiling in (True, False):
        working = WorkingAutoencoder(fast, device=torch.device("cpu"), tiling=tiling, offload=False)
        assert close(working.decode(z), model.decode(z))


def test_weights_are_the_models_own_under_the_same_names():
    unet = small_unet()
    before = copy.deepcopy(unet.state_dict())
    with pytest.warns(UserWarning, match="fused kernels are not used"):
        choose_fusions.cache_clear()
        fast = fast_cuda(shared_copy(unet), torch.float32)
    assert fast_cuda(fast, torch.float32) is fast  # twice is once
    choose_fusions.cache_clear()
    for name, parameter in fast.named_parameters():
        assert unet.get_parameter(name) is parameter
    for state in (fast.state_dict(), unet.state_dict()):
        assert list(state) == list(before)
        assert all(torch.equal(state[name], before[name]) for name in before)
    assert fast.conv_out.weight.is_contiguous(memory_format=torch.channels_last)


def test_gradients_are_the_models_own():
    unet = small_unet()
    fast = fused_copy(unet, PLAIN)
    assert torch.equal(answer(fast), answer(unet))
    answer(fast).sum().backward()
    found = [p.grad.clone() for p in unet.parameters() if p.grad is not None]
    unet.zero_grad()
    answer(unet).sum().backward()
    assert all(map(torch.equal, found, [p.grad for p in unet.parameters() if p.grad is not None]))


@torch.no_grad()
def test_adapters_reach_the_joined_weights():
    unet = small_unet()
    fast = fused_copy(unet, PLAIN)
    answer(fast)  # weights are joined
    path = next(name for name, module in unet.named_modules() if isinstance(module, nn.Linear) and "attn1.to_k" in name)
    change = {path: Update("full", torch.randn_like(unet.get_submodule(path).weight), None)}
    wanted, plain = answer(adapted(unet, [(change, 1.0)])), answer(unet)
    assert close(answer(adapted(fast, [(change, 1.0)])), wanted)
    assert not close(wanted, plain, 1e-3)
    assert close(answer(fast), plain)


@torch.no_grad()
def test_weights_written_to_are_joined_again():
    unet = small_unet()
    fast = fused_copy(unet, PLAIN)
    answer(fast)
    unet.load_state_dict({name: value * 0.9 for name, value in unet.state_dict().items()})
    assert close(answer(fast), answer(unet))
    fast.double()
    x, t, cond = asked(unet)
    assert fast(x.double(), t, fast.project(cond.to(dtype=torch.float64))).dtype == torch.float64


INTERPRETED = """
import torch
from latent_diffusion.runtime.cuda import triton_group_norm
from latent_diffusion.runtime.cuda.fusions import PLAIN, difference, triton_fusions
from tests.runtime.test_cuda_speedup import answer, fused_copy, small_unet

fusions = triton_fusions()
for dtype, most in ((torch.float32, 1e-6), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)):
    assert difference(fusions, torch.device("cpu"), dtype) <= most, dtype
norm = torch.nn.GroupNorm(2, 6).requires_grad_(False)
triton_group_norm.MOST_CHUNKS = 8  # each of several tiles: on a GPU there are 512
x = 1000 + torch.randn(2, 6, 27, 23)  # and a mean that costs digits when squared
x = x.contiguous(memory_format=torch.channels_last)
wanted = PLAIN.norm(x.double(), torch.nn.GroupNorm(2, 6).double(), silu=False).float()
assert (fusions.norm(x, norm, silu=False) - wanted).abs().max() < 1e-3
with torch.no_grad():
    unet = small_unet()
    found, wanted = answer(fused_copy(unet, fusions)), answer(unet)
    assert (found - wanted).norm() / wanted.norm() < 1e-5
print("equal")
"""


def test_triton_kernels_by_the_interpreter():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert run.stdout == "equal\n", run.stderr


@pytest.mark.gpu
@torch.no_grad()
def test_fused_and_replayed_on_a_gpu():
    from latent_diffusion.runtime.cuda.cuda_graphs import CudaRecorder
    from latent_diffusion.runtime.cuda.graphs import GraphedUNet, Graphs

    device = torch.device("cuda")
    for dtype, most in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
        unet = small_unet()
        x, t, cond = asked(unet)
        wanted = unet(x, t, unet.project(cond))
        fast = fast_cuda(unet.to(device, dtype), dtype)
        graphed = GraphedUNet(fast, Graphs(CudaRecorder(device)))
        x, t, cond = x.to(device, dtype), t.to(device), cond.to(device, dtype)
        projected = graphed.project(cond)
        results = [graphed(x, t, projected) for _ in range(3)]
        assert torch.equal(results[0], results[2])
        assert torch.equal(results[0], fast(x, t, projected))
        assert close(results[0].float().cpu(), wanted, most)
