"""No step of a sampler reads a number back from the device: on the meta device there is none to be read."""

import pkgutil

import pytest
import torch

import latent_diffusion.samplers
from latent_diffusion.checkpoint.folder.scheduler_config import read_schedule
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.denoiser import Denoiser
from latent_diffusion.diffusion.noise import NoiseSource
from latent_diffusion.diffusion.spacing import levels
from latent_diffusion.families import tiny
from latent_diffusion.guidance.apg import APG
from latent_diffusion.guidance.cfg import CFG
from latent_diffusion.guidance.pag import PAG
from latent_diffusion.models.unet import UNet
from latent_diffusion.nn.attention import ImageAttention, automatic, written_out
from latent_diffusion.registry import find
from latent_diffusion.runtime.cuda import wide_heads
from latent_diffusion.runtime.cuda.cuda_speedup import fuse
from latent_diffusion.runtime.cuda.device_noise import NearNoise, on_device
from latent_diffusion.runtime.cuda.fusions import PLAIN

SAMPLERS = [module.name for module in pkgutil.iter_modules(latent_diffusion.samplers.__path__)]
SCHEDULE, PREDICTION = read_schedule(tiny.SCHEDULER)


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_sampler_waits(name):
    sampler = find("latent_diffusion.samplers", name)()
    visited = levels(SCHEDULE, "leading", 4, intervals=sampler.intervals, fractional=sampler.fractional)
    x = torch.empty(2, 4, 8, 8, device="meta")
    steps = list(sampler(lambda x, level: torch.tanh(x), x, visited, NoiseSource([1, 2])))
    assert steps and all(step.x.is_meta for step in steps)


@pytest.mark.parametrize("guidance", [CFG(5.0, rescale=0.5), APG(5.0), CFG(5.0) + PAG(3.0, layers="")])
@torch.no_grad()
def test_neither_network_nor_guidance_waits(guidance):
    with torch.device("meta"):
        unet = UNet(tiny.UNET).eval()
    fuse(unet, PLAIN)
    width = unet.config.cross_attention_dim
    cond, away = (Conditioning(torch.empty(2, 5, width, device="meta")) for _ in range(2))
    visited = levels(SCHEDULE, "leading", 2)
    denoise = guidance.bind(Denoiser(unet, SCHEDULE, PREDICTION), cond, away, levels=visited)
    assert denoise(torch.empty(2, 4, 8, 8, device="meta"), visited[0]).is_meta


def test_reading_back_would_be_noticed():
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.empty(1, device="meta").item()
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.empty(1, device="meta").cpu()


def test_noise_near_the_gpu_has_the_same_numbers(monkeypatch):
    source = NoiseSource([3])
    assert on_device(source, torch.device("cpu")) is source
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)  # which needs a GPU
    moved = NearNoise(NoiseSource([3]), torch.device("cpu"))
    assert len(moved) == 1
    for _ in range(2):
        assert torch.equal(moved.draw((4, 8, 8)), source.draw((4, 8, 8)))


def test_wide_heads_attend_as_the_formula_says(monkeypatch):
    monkeypatch.setattr(wide_heads, "_products", lambda a, b: a.float() @ b.float())  # torch has its own for GPUs
    monkeypatch.setattr(wide_heads, "SCORES", 64)  # several chunks
    q, k, v = (torch.randn(2, 1, 9, 320) for _ in range(3))
    assert torch.allclose(wide_heads.attend_wide(q, k, v), written_out(q, k, v), atol=1e-5)
    layer, narrow = ImageAttention(320, 8, 1e-6), ImageAttention(64, 8, 1e-6)
    wide_heads._works.cache_clear()
    wide_heads.use_for_wide_heads(torch.nn.ModuleList([layer, narrow]), torch.device("cpu"), torch.bfloat16)
    assert layer.kernel is wide_heads.attend_wide
    assert narrow.kernel is automatic
    wide_heads._works.cache_clear()


def test_wide_heads_stay_with_torch_where_its_products_are_missing():
    layer = ImageAttention(320, 8, 1e-6)
    wide_heads._works.cache_clear()
    wide_heads.use_for_wide_heads(layer, torch.device("cpu"), torch.bfloat16)
    assert layer.kernel is automatic


@pytest.mark.gpu
@torch.no_grad()
def test_wide_heads_on_a_gpu():
    device = torch.device("cuda")
    layer = ImageAttention(512, 32, 1e-6)
    wide_heads.use_for_wide_heads(layer, device, torch.bfloat16)
    assert layer.kernel is wide_heads.attend_wide
    q, k, v = (torch.randn(1, 1, 9000, 512, device=device, dtype=torch.bfloat16) for _ in range(3))
    wanted = written_out(q.float(), k.float(), v.float())
    assert (layer.kernel(q, k, v).float() - wanted).norm() / wanted.norm() < 1e-2


@pytest.mark.gpu
def test_noise_reaches_a_gpu_unchanged():
    found = on_device(NoiseSource([3]), torch.device("cuda")).draw((4, 8, 8))
    assert found.is_cuda and torch.equal(found.cpu(), NoiseSource([3]).draw((4, 8, 8)))
