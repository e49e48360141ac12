"""In bands of rows or whole: the same latents and images, whatever the size of a band."""

import pytest
import torch

from latent_diffusion.models.autoencoder import AutoencoderConfig, AutoencoderKL
from latent_diffusion.nn.attention import written_out
from latent_diffusion.runtime import rows
from latent_diffusion.runtime.tiling import TiledAutoencoder, in_chunks

TOLERANCE = 1e-5  # float32 rounding through some thirty norms; values are about 1


@pytest.fixture(scope="module")
def whole():
    """A small autoencoder with everything the large ones have: attention, shortcuts, both resamplers."""
    torch.manual_seed(0)
    config = AutoencoderConfig(block_out_channels=(8, 16, 16), layers_per_block=2, latent_channels=4, norm_num_groups=4)
    model = AutoencoderKL(config).eval()
    with torch.no_grad():
        largest = model.decode(torch.randn(1, 4, 16, 16)).abs().max()
        for parameter in model.decoder.conv_out.parameters():
            parameter /= largest  # images about in [-1, 1], as those of a trained model
    return model


@pytest.mark.parametrize("rows_at_once", [1, 3, 8, 1000])
@pytest.mark.parametrize("size", [(16, 12), (5, 7), (1, 1), (33, 2)], ids=str)
def test_bands_give_what_the_whole_gives(whole, monkeypatch, size, rows_at_once):
    monkeypatch.setattr(rows, "FEWEST_ROWS", rows_at_once)
    monkeypatch.setattr(rows, "BAND", 1)
    tiled, (height, width) = TiledAutoencoder(whole), size
    torch.manual_seed(1)
    z, images = torch.randn(2, 4, height, width), torch.rand(2, 3, 4 * height, 4 * width) * 2 - 1
    with torch.no_grad():
        assert (tiled.decode(z) - whole.decode(z)).abs().max() <= TOLERANCE
        assert (tiled.to_images(z) - whole.to_images(z)).abs().max() <= TOLERANCE
        there, here = tiled.encode(images), whole.encode(images)
        assert (there.mean - here.mean).abs().max() <= TOLERANCE
        assert (there.logvar - here.logvar).abs().max() <= TOLERANCE
        assert (tiled.to_latents(images) - whole.to_latents(images)).abs().max() <= TOLERANCE


def test_statistics_are_those_of_the_whole_map_also_far_from_zero():
    torch.manual_seed(0)
    x, norm = torch.randn(2, 8, 50, 6) + 100, torch.nn.GroupNorm(4, 8)
    norm.weight.data.uniform_()
    norm.bias.data.normal_()
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch, torch.no_grad():
        patch.setattr(rows, "BAND", 8 * 6 * 2 * 9)
        apply = rows.whole_norm(rows.Kept(x), norm)
        assert (apply(x[:, :, 10:13]) - norm(x)[:, :, 10:13]).abs().max() <= 1e-4  # 100 leaves 1e-5 of float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_formats(whole, dtype):
    model = AutoencoderKL(whole.config).to(dtype).eval()
    z = torch.randn(1, 4, 6, 5, dtype=dtype)
    with torch.no_grad():
        tiled, plain = TiledAutoencoder(model).decode(z), model.decode(z)
    assert tiled.dtype == dtype
    assert (tiled - plain).abs().max() <= 16 * torch.finfo(dtype).eps * plain.abs().max().clamp(min=1)


def test_the_model_learns_nothing_of_it(whole):
    kernel, weights = whole.decoder.mid_block.attentions[0].kernel, whole.state_dict()
    tiled = TiledAutoencoder(whole)
    tiled.decode(torch.randn(1, 4, 8, 8))
    assert whole.decoder.mid_block.attentions[0].kernel is kernel
    assert tiled.state_dict().keys() == weights.keys()
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(tiled.state_dict().values(), weights.values(), strict=True))


@pytest.mark.parametrize("limit", [1, 40, 41, 10_000])
def test_attention_in_chunks_of_queries(limit):
    q, k, v = torch.randn(1, 1, 13, 4), torch.randn(1, 1, 20, 4), torch.randn(1, 1, 20, 4)
    seen = []

    def kernel(*qkv):
        seen.append(qkv[0].shape[-2] * qkv[1].shape[-2])
        return written_out(*qkv)

    assert torch.allclose(in_chunks(kernel, limit)(q, k, v), written_out(q, k, v), atol=1e-6)
    assert max(seen) <= max(limit, 20)


def test_no_band_holds_more_than_asked(whole, monkeypatch):
    """What lies in memory at once is what makes tiling worth it: the largest tensor that any layer reads or makes."""
    largest = 0
    conv2d = torch.nn.functional.conv2d

    def watched(x, *args, **kwargs):
        nonlocal largest
        out = conv2d(x, *args, **kwargs)
        largest = max(largest, x.numel(), out.numel())
        return out

    monkeypatch.setattr(torch.nn.functional, "conv2d", watched)
    monkeypatch.setattr(rows, "BAND", 4096)
    TiledAutoencoder(whole).decode(torch.randn(1, 4, 64, 8))
    assert largest <= 4096 * 3  # a band with its halo, of twice the channels; the whole map has 8 * 256 * 32 = 65536
