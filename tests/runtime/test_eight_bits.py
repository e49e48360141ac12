"""Layers with 8-bit weights and inputs: their numbers, what stays exact, and what is refused."""

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latent_diffusion.approximations import int8
from latent_diffusion.approximations.int8 import Int8
from latent_diffusion.checkpoint.files import safetensors_file, weights
from latent_diffusion.conditioning import Conditioning
from latent_diffusion.diffusion.approximation import Scope
from latent_diffusion.errors import CheckpointError, ConfigError
from latent_diffusion.families import tiny
from latent_diffusion.models.unet import UNet
from latent_diffusion.nn.resnet import Upsample
from latent_diffusion.runtime.cpu import eight_bit_layers, packing
from latent_diffusion.runtime.cpu.eight_bit_layers import in_eight_bits
from latent_diffusion.runtime.cpu.native import eight_bits
from latent_diffusion.runtime.cpu.native.eight_bits import EightBits
from latent_diffusion.runtime.cpu.packed_layers import phase_weights

pytestmark = pytest.mark.skipif(not eight_bits.available(), reason="the kernels are not built")
EIGHT = (eight_bit_layers.EightBitLinear, eight_bit_layers.EightBitPointwise, eight_bit_layers.EightBitConv2d)
WEIGHT = eight_bit_layers.EightBitWeight


def draw(*size, dtype=torch.float32):
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size))).to(dtype)


def restored(weight):
    """The numbers that `EightBits` stands for, (outputs, inputs, taps)."""
    whole = weight.panels.permute(0, 3, 1, 2, 4).flatten(3).flatten(0, 1)  # (outputs, taps, inputs)
    return (whole.double() * weight.scales[:, None, None])[: weight.outputs].transpose(1, 2)


@pytest.mark.parametrize("dtype", eight_bits.FORMATS)
@pytest.mark.parametrize("rows, inputs, outputs", [(1, 16, 32), (5, 20, 40), (300, 320, 96)])
def test_a_linear_layer_multiplies_the_rounded_numbers(rows, inputs, outputs, dtype):
    x, weight, bias = draw(rows, inputs, dtype=dtype), draw(outputs, inputs), draw(outputs)
    eight, numbers = EightBits.of(weight, bias), eight_bits.rounded(x)
    near = (numbers.numbers[:, :inputs].double() - numbers.zeros[:, None]) * numbers.scales[:, None]
    assert (near - x.double()).abs().max(1).values.le(0.51 * numbers.scales).all()
    close = restored(eight)[:, :inputs, 0]
    assert (close - weight.double()).abs().max(1).values.le(0.51 * eight.scales[:outputs]).all()
    found, wanted = eight_bits.multiply(numbers, eight), F.linear(near, close, bias.double())
    assert (found - wanted).norm() <= (1e-6 if dtype == torch.float32 else 4e-3) * wanted.norm()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (14, 13)])
def test_a_convolution_multiplies_the_rounded_numbers(size, stride):
    x, weight, bias = 1 + draw(2, 20, *size), draw(40, 20, 3, 3), draw(40)
    eight, numbers = EightBits.of(weight, bias), eight_bits.rounded(x.permute(0, 2, 3, 1), size[0] * size[1])
    near = numbers.numbers[:, :20].double().unflatten(0, (2, *size)) - numbers.zeros[:, None, None, None]
    near = (near * numbers.scales[:, None, None, None]).permute(0, 3, 1, 2)
    close = restored(eight)[:, :20].unflatten(2, (3, 3))
    wanted = F.conv2d(near, close, bias.double(), stride, 1)
    found = eight_bits.convolve(x, eight, stride)
    assert (found - wanted).norm() <= 1e-6 * wanted.norm()
    assert torch.equal(eight_bits.convolve(x, eight, stride, added=found), found + found)
    assert torch.equal(eight_bits.convolve(x[1:], eight, stride), found[1:])  # whatever the batch is


def test_doubling_and_a_convolution_in_one():
    x, weight, bias = draw(2, 20, 5, 7), draw(40, 20, 3, 3), draw(40)
    found = eight_bits.double(x, [EightBits.of(part, bias) for part in phase_weights(weight)])
    wanted = F.conv2d(F.interpolate(x, scale_factor=2.0), weight, bias, padding=1)
    assert (found - wanted).norm() <= 0.015 * wanted.norm()


def test_nan_and_infinity_reach_all_that_they_are_summed_into():
    x = draw(3, 20)
    x[1, 7], x[2, 2] = torch.nan, torch.inf
    found = eight_bits.multiply(eight_bits.rounded(x), EightBits.of(draw(40, 20), None))
    assert found.isnan().all(1).tolist() == [False, True, True]
    x = draw(2, 20, 9, 9)
    x[0, 3, 8, 8] = torch.nan
    found = eight_bits.convolve(x, EightBits.of(draw(40, 20, 3, 3), None))
    assert found[0].isnan().all() and found[1].isfinite().all()


def test_constant_inputs_and_zero_weights():
    for value in (0.0, -2.0, 1e-38):
        x = torch.full((2, 16), value)
        found = eight_bits.multiply(eight_bits.rounded(x), EightBits.of(torch.eye(32, 16), torch.ones(32)))
        torch.testing.assert_close(found[:, :16], 1 + x, rtol=0.01, atol=1e-6)
    assert eight_bits.multiply(eight_bits.rounded(draw(2, 16)), EightBits.of(torch.zeros(32, 16), None)).eq(0).all()


def test_no_rows_give_no_rows():
    assert eight_bits.multiply(eight_bits.rounded(draw(0, 16)), EightBits.of(draw(40, 16), None)).shape == (0, 40)


@pytest.mark.parametrize("value", [1.0, -1.0])
def test_the_longest_sum_is_exact_and_a_longer_one_is_refused(value):
    x, weight = torch.full((1, eight_bits.MOST), value), torch.ones(1, eight_bits.MOST)
    found = eight_bits.multiply(eight_bits.rounded(x), EightBits.of(weight, None))
    torch.testing.assert_close(found, torch.full((1, 1), value * eight_bits.MOST), rtol=1e-6, atol=0.0)
    with pytest.raises(ValueError, match=r"66312 products .* more than 66311"):
        EightBits.of(torch.ones(1, eight_bits.MOST + 1), None)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return UNet(tiny.UNET).eval().requires_grad_(False)


def answer(network):
    dtype = network.conv_in.bias.dtype
    cond = Conditioning(draw(2, 5, 32).to(dtype))
    with torch.no_grad():
        return network(draw(2, 4, 8, 8).to(dtype), torch.tensor([500, 500]), network.project(cond))


@pytest.mark.parametrize("packed", [False, True])
def test_layers_on_the_way_of_every_pixel_are_rounded_and_the_network_stays(network, packed, chosen):
    wanted = answer(network)
    if packed:
        packing.pack(network)
    before = {name: type(module) for name, module in network.named_modules()}
    twin, linear = in_eight_bits(network, convolutions=True), in_eight_bits(network, convolutions=False)
    rounded = {name for name, module in twin.named_modules() if isinstance(module, EIGHT)}
    left = {name.rpartition(".")[2] for name, module in twin.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d) and name not in rounded}  # fmt: skip
    assert left == {"conv_in", "linear_1", "linear_2", "to_k", "to_v", "conv", "conv_out"}
    weights_only = {name for name, module in twin.named_modules() if isinstance(module, WEIGHT)}
    assert weights_only == {name for name in before if name.endswith(("attn2.to_k", "attn2.to_v"))} != set()
    assert any("downsamplers" in name for name in rounded)
    assert any(isinstance(module, eight_bit_layers.EightBitUpsample) for module in twin.modules())
    assert not any(isinstance(module, EIGHT[2]) for module in linear.modules())
    for made in (twin, linear):
        found = answer(made)
        assert 1e-4 < (found - wanted).norm() / wanted.norm() < 0.05
    assert before == {name: type(module) for name, module in network.named_modules()}
    torch.testing.assert_close(answer(network), wanted, rtol=1e-4, atol=1e-5)


def test_a_layer_with_a_rounded_weight_multiplies_exact_inputs():
    layer = nn.Linear(20, 40)
    eight = EightBits.of(layer.weight, layer.bias)
    x = draw(3, 20)
    wanted = F.linear(x.double(), restored(eight)[:, :20, 0], layer.bias.double())
    vars(layer)["eight"], layer.__class__ = eight, WEIGHT
    torch.testing.assert_close(layer(x).double(), wanted, rtol=1e-5, atol=1e-6)


def test_the_outermost_convolutions_beside_residual_blocks_stay_exact_on_demand(network):
    outer = {"down_blocks.0.resnets.0.conv_shortcut", "up_blocks.1.resnets.0.conv_shortcut"}
    outer.add("up_blocks.1.resnets.1.conv_shortcut")
    twins = [in_eight_bits(network, convolutions=True, outermost=outermost) for outermost in (False, True)]
    few, every = ({name for name, module in twin.named_modules() if "eight" in vars(module)} for twin in twins)
    left = every - few
    assert left and left <= outer and left == {name for name in every if "conv_shortcut" in name and name in outer}


def test_a_weight_is_rounded_once_and_again_when_it_was_changed(network):
    def panels(*, convolutions):
        twin = in_eight_bits(network, convolutions=convolutions)
        return vars(twin.down_blocks[0].attentions[0].proj_in)["eight"].panels

    first = panels(convolutions=True)
    assert panels(convolutions=False) is first
    with torch.no_grad():
        network.down_blocks[0].attentions[0].proj_in.weight.neg_()
    assert torch.equal(panels(convolutions=True), -first)


def test_a_bias_of_its_own_and_a_changed_one_are_used(network):
    transformer = network.down_blocks[0].attentions[0]
    transformer.proj_out.weight = transformer.proj_in.weight

    def biases():
        twin = in_eight_bits(network, convolutions=False).down_blocks[0].attentions[0]
        return [vars(layer)["eight"].bias for layer in (twin.proj_in, twin.proj_out)]

    layers = (transformer.proj_in, transformer.proj_out)
    for _ in range(2):
        for found, layer in zip(biases(), layers, strict=True):
            assert torch.equal(found[: layer.bias.numel()], layer.bias)
        transformer.proj_out.bias.add_(1)


def test_a_network_that_was_made_in_inference_mode_is_rounded():
    with torch.inference_mode():
        twin: Any = in_eight_bits(UNet(tiny.UNET), convolutions=True)
    assert isinstance(twin.down_blocks[0].attentions[0].proj_in, EIGHT)


def test_layers_of_a_form_that_the_kernel_does_not_compute_stay_exact(network):
    resnet, transformer = network.down_blocks[0].resnets[0], network.down_blocks[0].attentions[0]
    upsample = next(module for module in network.modules() if isinstance(module, Upsample))
    resnet.conv1.padding_mode = upsample.conv.padding_mode = "circular"
    resnet.conv2.padding = (1, 0)
    transformer.proj_in = nn.Linear(eight_bits.MOST + 1, 1)
    twin = in_eight_bits(network, convolutions=True)
    resnet, transformer = twin.down_blocks[0].resnets[0], twin.down_blocks[0].attentions[0]
    assert not isinstance(resnet.conv1, EIGHT) and not isinstance(resnet.conv2, EIGHT)
    assert not isinstance(transformer.proj_in, EIGHT) and isinstance(transformer.proj_out, EIGHT)
    assert not all(isinstance(m, eight_bit_layers.EightBitUpsample) for m in twin.modules() if isinstance(m, Upsample))


def test_what_cannot_be_is_refused_with_its_reason(network, monkeypatch):
    with pytest.raises(ConfigError, match=r"works on CPUs, not on cuda"):
        Int8().change(network, Scope([], (8, 8), torch.device("cuda")))
    with pytest.raises(ConfigError, match=r"float32 and bfloat16, not torch.float16"):
        Int8().check(UNet(tiny.UNET).half())
    with pytest.raises(ConfigError, match=r"int8: layers 'al'.*all"):
        Int8("al")
    monkeypatch.setattr(int8.eight_bit_layers, "pays", lambda *, convolutions: False)
    with pytest.raises(ConfigError, match=r"no faster .* use int8:layers=most"):
        Int8.from_values({}, lambda _: None)
    assert Int8.from_values({"layers": "all"}, lambda _: None) == Int8("all")
    monkeypatch.setattr(int8.eight_bit_layers, "pays", lambda *, convolutions: not convolutions)
    assert Int8.from_values({}, lambda _: None) == Int8("linear")
    monkeypatch.setattr(eight_bits, "available", lambda: False)
    with pytest.raises(ConfigError, match=r"needs the compiled kernels"):
        Int8.from_values({}, lambda _: None).check(network)


@pytest.fixture
def stored(tmp_path, network, monkeypatch):
    """What reads the same network from a file, in a number format, and the file; each weight can be read again."""
    monkeypatch.setattr(safetensors_file, "LARGE", 1)
    file = tmp_path / "unet.safetensors"
    safetensors_file.write_tensors(file, network.state_dict())

    def read(dtype):
        with torch.device("meta"):
            empty = UNet(tiny.UNET)
        return weights.fill(empty, weights.Weights(file, safetensors_file.open_tensors(file)), dtype)

    return read, file


def rounded_and_held(network, twin):
    """Whether memory holds the exact weight or what was made of it, for each layer that `twin` has rounded."""
    pairs = zip(network.modules(), twin.modules(), strict=True)
    exact = [each.conv if isinstance(each, Upsample) else each for each, near in pairs if "eight" in vars(near)]
    return [vars(layer)["packed"].held or "panels" in vars(layer) for layer in exact]


@pytest.mark.parametrize("dtype", eight_bits.FORMATS)
def test_memory_holds_no_exact_weight_until_it_is_used_again(stored, dtype, chosen):
    network = stored[0](dtype).requires_grad_(False)
    packing.pack(network)
    wanted = answer(network)
    twin = in_eight_bits(network, convolutions=True)
    assert len(held := rounded_and_held(network, twin)) > 20 and not any(held)
    near = answer(twin)
    assert 1e-4 < (near - wanted).norm() / wanted.norm() < 0.05 and not any(rounded_and_held(network, twin))
    assert torch.equal(answer(network), wanted) and any(rounded_and_held(network, twin))
    again = in_eight_bits(network, convolutions=True)
    assert torch.equal(answer(again), near) and not any(rounded_and_held(network, again))
    found = network.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in stored[0](dtype).state_dict().items())


def test_a_weight_that_is_not_as_in_its_file_stays_in_memory(stored, network, chosen):
    changed = stored[0](torch.float32).requires_grad_(False)
    for weight in changed.parameters():
        weight.neg_()
    packing.pack(changed)
    packing.pack(network)  # from no file
    for each in (changed, network):
        assert all(rounded_and_held(each, in_eight_bits(each, convolutions=True)))


def test_weights_of_a_file_that_was_written_to_stay_in_memory(stored, chosen):
    read, file = stored
    network = read(torch.float32).requires_grad_(False)
    packing.pack(network)
    wanted = answer(network)
    os.utime(file, ns=(1, 1))
    assert all(rounded_and_held(network, in_eight_bits(network, convolutions=True)))
    assert torch.equal(answer(network), wanted)


def test_a_file_that_was_written_to_is_not_read_again(stored, chosen):
    read, file = stored
    network = read(torch.float32).requires_grad_(False)
    packing.pack(network)
    in_eight_bits(network, convolutions=True)
    os.utime(file, ns=(1, 1))
    with pytest.raises(CheckpointError, match=r"unet.safetensors: .*written to since; load the model again"):
        answer(network)
