"""Properties of the U-Net that do not need a reference."""

import dataclasses

import pytest
import torch

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.errors import ConfigError
from latent_diffusion.families import tiny
from latent_diffusion.models.unet import Projected, UNet, UNetConfig
from latent_diffusion.nn.attention import Attention, automatic, sdpa, written_out

WIDTH = tiny.UNET.cross_attention_dim


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet(tiny.UNET)


def inputs(count: int = 3):
    torch.manual_seed(1)
    return torch.randn(count, 4, 8, 8), torch.arange(count) * 400, Conditioning(torch.randn(count, 5, WIDTH))


def relative(found, expected) -> float:
    return ((found.float() - expected).norm() / expected.norm()).item()


def test_gradient_reaches_every_weight_and_the_context(unet):
    x, t, cond = inputs()
    cond.context.requires_grad_()
    unet(x, t, unet.project(cond)).square().sum().backward()
    for name, weight in unet.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name
    assert cond.context.grad is not None and cond.context.grad.abs().sum() > 0


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(unet):
    x, t, cond = inputs()
    whole = unet(x, t, unet.project(cond))
    for row in range(3):
        rows = slice(row, row + 1)
        assert relative(unet(x[rows], t[rows], unet.project(cond[rows])), whole[rows]) <= 1e-5
        assert relative(unet(x[rows], t[rows], unet.project(cond)[rows]), whole[rows]) <= 1e-5


@torch.no_grad()
def test_projections_join_repeat_and_cast(unet):
    _, _, cond = inputs()
    cond = Conditioning(cond.context, concat=torch.randn(3, 5, 8, 8))
    projected = unet.project(cond)
    assert len(projected) == 3
    joined = Projected.cat([projected[:1], projected[1:]])
    for (k, v), (k2, v2) in zip(projected.keys_values, joined.keys_values, strict=True):
        assert torch.equal(k, k2) and torch.equal(v, v2)
    assert joined.concat is not None and torch.equal(joined.concat, cond.concat)
    assert len(projected.repeat_interleave(2)) == 6
    assert projected.to(dtype=torch.bfloat16).keys_values[0][0].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="concat"):
        Projected.cat([projected, Projected(projected.keys_values)])


def test_checkpointing_changes_memory_not_numbers(unet):
    x, t, cond = inputs()
    gradients = []
    for enabled in (False, True):
        unet.zero_grad()
        unet.enable_gradient_checkpointing(enabled)
        unet(x, t, unet.project(cond)).square().sum().backward()
        gradients.append({name: weight.grad.clone() for name, weight in unet.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@torch.no_grad()
def test_channels_last_and_bfloat16(unet):
    x, t, cond = inputs()
    expected = unet(x, t, unet.project(cond))
    unet.to(memory_format=torch.channels_last)
    assert relative(unet(x.to(memory_format=torch.channels_last), t, unet.project(cond)), expected) <= 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert relative(unet(x, t, unet.project(cond)), expected) <= 0.03
    unet.to(torch.bfloat16)
    found = unet(x.bfloat16(), t, unet.project(cond.to(dtype=torch.bfloat16)))
    assert found.dtype == torch.bfloat16 and relative(found, expected) <= 0.03


@torch.no_grad()
def test_times_may_be_floats(unet):
    x, t, cond = inputs()
    projected = unet.project(cond)
    assert torch.equal(unet(x, t, projected), unet(x, t.float(), projected))
    assert not torch.equal(unet(x, t, projected), unet(x, t + 0.5, projected))


@torch.no_grad()
def test_the_kernel_is_a_field(unet):
    x, t, cond = inputs()
    calls = []

    def plain(q, k, v):
        calls.append(q.shape)
        return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1) @ v

    expected = unet(x, t, unet.project(cond))
    layers = [module for module in unet.modules() if isinstance(module, Attention)]
    for layer in layers:
        layer.kernel = plain
    assert relative(unet(x, t, unet.project(cond)), expected) <= 1e-5
    assert len(calls) == len(layers)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_kernels_agree(dtype, bound):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 16) for length in (10, 7, 7))
    expected = sdpa(q, k, v)
    for kernel in (automatic, written_out, sdpa):
        found = kernel(q.to(dtype), k.to(dtype), v.to(dtype))
        assert found.dtype == dtype and relative(found, expected) <= bound


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_attention_heads": (3, 2)}, "num_attention_heads 3"),
        ({"norm_num_groups": 12}, "norm_num_groups 12"),
        ({"cross_attention": (True,)}, "cross_attention has 1"),
        ({"block_out_channels": ()}, "block_out_channels is empty"),
    ],
)
def test_sizes_are_checked(change, named):
    values = {
        "sample_size": 8,
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "cross_attention": [True, True],
        "num_attention_heads": [2, 2],
        "cross_attention_dim": 8,
        "norm_num_groups": 8,
    }
    assert UNetConfig(**values).block_out_channels == (16, 32)
    with pytest.raises(ConfigError, match=named):
        UNetConfig(**(values | change))


XL = UNetConfig(8, (16, 32), 1, (True, True), (2, 2), WIDTH, norm_num_groups=8, added_width=4 + 6 * 8, size_width=8)


def told(count: int = 3) -> Conditioning:
    torch.manual_seed(2)
    return Conditioning(torch.randn(count, 5, WIDTH), torch.randn(count, 4), torch.randint(0, 2048, (count, 6)).float())


@torch.no_grad()
def test_the_added_vector_is_projected_once_and_travels_with_its_row():
    torch.manual_seed(0)
    unet, (x, t, _), cond = UNet(XL), inputs(), told()
    projected = unet.project(cond)
    whole = unet(x, t, projected)
    for row in range(3):
        rows = slice(row, row + 1)
        assert relative(unet(x[rows], t[rows], projected[rows]), whole[rows]) <= 1e-5
    assert torch.equal(Projected.cat([projected[:1], projected[1:]]).added, projected.added)
    assert projected.repeat_interleave(2).added.shape == (6, 64)
    other = unet.project(Conditioning(cond.context, cond.pooled, cond.size_ids + 1))
    assert relative(unet(x, t, other), whole) > 1e-4
    with pytest.raises(ValueError, match="`added` is set in 1 of 2"):
        Projected.cat([projected, Projected(projected.keys_values)])


def test_size_numbers_are_not_rounded():
    cond = Conditioning(torch.zeros(1, 5, WIDTH), torch.zeros(1, 4), torch.full((1, 6), 1023.0))
    moved = cond.to(dtype=torch.bfloat16)
    assert moved.context.dtype == moved.pooled.dtype == torch.bfloat16
    assert moved.size_ids.dtype == torch.float32 and (moved.size_ids == 1023).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pooled": None}, "needs `pooled` and `size_ids`"),
        ({"size_ids": None}, "needs `pooled` and `size_ids`"),
        ({"size_ids": torch.zeros(3, 5)}, "5 sizes .* are 44 channels; this U-Net reads 52"),
        ({"pooled": torch.zeros(3, 5)}, r"pooled vector \(5\)"),
    ],
)
def test_what_sdxl_must_be_told(change, words):
    with pytest.raises(ConfigError, match=words):
        UNet(XL).project(dataclasses.replace(told(), **change))


def test_layers_of_each_level():
    config = dataclasses.replace(tiny.UNET, transformer_layers_per_block=[1, 3])
    unet = UNet(config)
    assert config.transformer_layers_per_block == (1, 3)
    depths = [len(place.attentions[0].transformer_blocks) for place in (*unet.down_blocks, unet.mid_block)]
    assert depths == [1, 3, 3] and len(unet.up_blocks[1].attentions[0].transformer_blocks) == 1
    with pytest.raises(ConfigError, match="transformer_layers_per_block has 1 entries for 2"):
        dataclasses.replace(tiny.UNET, transformer_layers_per_block=(1,))
