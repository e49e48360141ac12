"""The autoencoder at work: an overflow is decoded again, memory decides what is done at once, no black picture."""

import copy
import dataclasses
import warnings

import pytest
import torch

from latent_diffusion import LatentDiffusionPipeline
from latent_diffusion.errors import DivergedError, LatentDiffusionWarning
from latent_diffusion.families import tiny
from latent_diffusion.models.autoencoder import AutoencoderConfig, AutoencoderKL
from latent_diffusion.pipeline.engine.output import decode
from latent_diffusion.runtime import memory, working_autoencoder
from latent_diffusion.runtime.memory import decoding_bytes, pictures_at_once, sampling_bytes
from latent_diffusion.runtime.working_autoencoder import WorkingAutoencoder

CPU = torch.device("cpu")


def at_work(model, **options):
    return WorkingAutoencoder(model, device=CPU, **({"tiling": "auto", "offload": False} | options)).eval()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return AutoencoderKL(tiny.AUTOENCODER).eval()


def too_large_inside(model):
    """Push the decoder's activations past 65504, with weights that float16 can hold; norms take the size out again."""
    loud = copy.deepcopy(model).float()
    with torch.no_grad():
        z = torch.randn(8, model.config.latent_channels, 8, 8)
        scale = 3e5 / loud.decoder.conv_in(loud.post_quant_conv(z)).abs().max()
        for parameter in loud.decoder.conv_in.parameters():
            parameter *= scale
    assert all(p.half().isfinite().all() for p in loud.parameters())
    return loud


@pytest.mark.parametrize("tiling", [False, True])
def test_an_overflow_in_half_precision_is_decoded_again(model, tiling):
    z, loud = torch.randn(2, tiny.AUTOENCODER.latent_channels, 8, 8).half(), too_large_inside(model)
    half = at_work(loud.half(), tiling=tiling)
    with torch.no_grad():
        with pytest.warns(LatentDiffusionWarning, match="decoder overflowed in float16; it is run again in float32"):
            found = half.decode(z)
        wanted = copy.deepcopy(loud).float().decode(z.float())
    assert found.isfinite().all() and found.dtype == torch.float32
    assert (found - wanted).abs().max() <= 1e-5
    assert {p.dtype for p in half.parameters()} == {torch.float16}, "the weights stay what they are"


def test_only_what_overflowed_is_decoded_again(model):
    z = torch.randn(3, tiny.AUTOENCODER.latent_channels, 8, 8).half()
    half = at_work(model.half())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", LatentDiffusionWarning)
        fine = half.decode(z)
    assert fine.dtype == torch.float16 and fine.isfinite().all()


def test_broken_weights_are_no_overflow(model):
    with torch.no_grad():
        model.decoder.conv_out.bias[0] = torch.nan
    with pytest.warns(LatentDiffusionWarning), pytest.raises(DivergedError, match="not finite for image 0"):
        decode(at_work(model.half()), torch.zeros(1, tiny.AUTOENCODER.latent_channels, 4, 4))
    with pytest.raises(DivergedError, match="not finite for image 0"):
        decode(at_work(model.float()), torch.zeros(1, tiny.AUTOENCODER.latent_channels, 4, 4))


def test_a_pipeline_in_half_precision_draws_no_black_picture(tiny_folder, tiny_pipeline):
    plain = LatentDiffusionPipeline.from_pretrained(tiny_folder, device="cpu", vae_dtype="float16")
    assert {p.dtype for p in plain.components.autoencoder.parameters()} == {torch.float16}
    options = {"num_inference_steps": 2, "seed": 1, "output_type": "pt"}
    wanted = tiny_pipeline("a cat", **options).images
    assert (plain("a cat", **options).images - wanted).abs().max() <= 0.02
    loud = dataclasses.replace(
        tiny_pipeline.components, autoencoder=too_large_inside(tiny_pipeline.components.autoencoder)
    )
    wanted = LatentDiffusionPipeline(copy.deepcopy(loud), device="cpu")("a cat", **options).images
    pipe = LatentDiffusionPipeline(copy.deepcopy(loud), device="cpu", vae_dtype="float16")
    with pytest.warns(LatentDiffusionWarning, match="overflowed"):
        images = pipe("a cat", **options).images
    assert (images - wanted).abs().max() <= 0.02 and images.std() > 0.01


def test_memory_decides_what_is_decoded_at_once(model, monkeypatch):
    config, pixels, seen = model.config, 32 * 32, []
    inside = AutoencoderKL.decode
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, z: seen.append(len(z)) or inside(self, z))
    working = at_work(model)
    z = torch.randn(5, config.latent_channels, 32 // working.factor, 32 // working.factor)
    results = {}
    for fit in (5, 2, 0):
        free = 2 * decoding_bytes(config, pixels) * fit
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        seen.clear()
        with torch.no_grad():
            results[fit] = working.decode(z)
        assert seen == {5: [5], 2: [2, 2, 1], 0: []}[fit], "nothing fits: in bands"
    assert all((r - results[5]).abs().max() <= 1e-5 for r in results.values())


def test_estimates_grow_with_the_work_and_keep_their_bounds(monkeypatch):
    sd1 = AutoencoderConfig(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4)
    assert 0.9e9 <= decoding_bytes(sd1, 512 * 512) <= 1.3e9  # 960 MiB were measured
    assert decoding_bytes(sd1, 1024 * 1024) == 4 * decoding_bytes(sd1, 512 * 512)
    assert sampling_bytes(tiny.UNET, 64) > 0
    for free, need, count in ((0, 10, 1), (1000, 10, 32), (100, 10, 5), (10**12, 0, 32)):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        assert pictures_at_once(need, CPU) == count
    monkeypatch.undo()
    assert memory.free_memory(CPU) > 2**20


def test_what_torch_holds_without_using_it_is_free(monkeypatch):
    for name, value in (("mem_get_info", (10, 100)), ("memory_reserved", 50), ("memory_allocated", 20)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory.free_memory(torch.device("cuda")) == 10 + 30


def test_the_encoder_is_made_ready_once_and_only_when_it_is_used(model):
    done = []
    working = WorkingAutoencoder(model, device=CPU, tiling=False, offload=False, before_encoding=done.append).eval()
    z = torch.randn(1, model.config.latent_channels, 4, 4)
    assert working.decode(z).isfinite().all() and not done
    for _ in range(2):
        working.encode(torch.zeros(1, 3, 16, 16))
        assert done == [model.encoder, model.quant_conv]


def test_free_memory_is_given_back_before_the_first_picture_alone(model, monkeypatch):
    calls, working = [], at_work(model)
    monkeypatch.setattr(working_autoencoder, "give_back_free", lambda: calls.append(1))
    pictures = [working.decode(torch.ones(1, tiny.AUTOENCODER.latent_channels, 4, 4)) for _ in range(3)]
    assert len(calls) == 1 and all(torch.equal(pictures[0], picture) for picture in pictures)
