"""Packed weights: the same numbers, faster; and back, bit for bit."""

import copy
import io
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latent_diffusion.families import tiny
from latent_diffusion.models.autoencoder import AutoencoderKL
from latent_diffusion.nn.resnet import Upsample
from latent_diffusion.nn.shared_copy import shared_copy
from latent_diffusion.runtime.cpu import allocator, packing, reordered
from latent_diffusion.runtime.cpu.packed_layers import (
    SAME,
    PackedConv2d,
    PackedLinear,
    PackedPointwise,
    PhasesConv2d,
    reordered_weight,
)
from latent_diffusion.runtime.cpu.packing import pack, reorders, unpack
from latent_diffusion.runtime.cpu.reordered import Reordered
from latent_diffusion.runtime.residency import moved

PACKED = (PackedConv2d, PackedLinear, PackedPointwise)
REASON = "torch cannot reorder bfloat16 weights on this processor, which has neither avx512bw nor avx_ne_convert"
HALF = pytest.mark.skipif(not reorders(torch.bfloat16), reason=REASON)
DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=HALF)]


@pytest.fixture(autouse=True)
def packs(monkeypatch):
    """Pack whatever this machine's trial says."""
    monkeypatch.setattr(packing, "linear_packs", reorders)
    monkeypatch.setattr(packing, "conv_packs", reorders)


def layers(dtype=torch.float32):
    torch.manual_seed(0)
    made = [
        (nn.Linear(24, 40), (2, 7, 24)),
        (nn.Linear(24, 40, bias=False), (5, 24)),
        (nn.Conv2d(16, 24, 3, padding=1), (2, 16, 9, 7)),
        (nn.Conv2d(16, 24, 3, stride=2), (1, 16, 9, 7)),
        (nn.Conv2d(4, 24, 3, padding=1, bias=False), (1, 4, 6, 6)),
        (nn.Conv2d(16, 24, 1), (2, 16, 5, 7)),
    ]
    return [(layer.to(dtype), torch.randn(size).to(dtype)) for layer, size in made]


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("index", range(6))
def test_numbers_and_weights(dtype, memory_format, index):
    layer, x = layers(dtype)[index]
    if x.dim() == 4:
        x = x.contiguous(memory_format=memory_format)
    wanted, before = layer(x), {name: t.clone() for name, t in layer.state_dict().items()}
    pack(layer)
    assert type(layer) in PACKED
    error = (layer(x) - wanted).float().norm() / wanted.float().norm()
    assert error <= (1e-6 if dtype == torch.float32 else 5e-3)
    assert list(layer.state_dict()) == list(before)
    assert all(torch.equal(layer.state_dict()[name], t) for name, t in before.items())
    unpack(layer)
    assert type(layer) in (nn.Linear, nn.Conv2d)
    assert list(layer.state_dict()) == list(before)
    assert [name for name, _ in layer.named_parameters()] == list(before)
    assert all(torch.equal(layer.state_dict()[name], t) for name, t in before.items())
    assert torch.equal(layer(x), wanted)


def test_weights_lie_in_memory_once():
    layer = nn.Linear(24, 40)
    pack(layer)
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


def test_gradients_flow_to_the_input():
    for layer, x in layers():
        wanted = torch.autograd.grad(layer(x.requires_grad_()).square().sum(), x)[0]
        pack(layer)
        assert torch.allclose(torch.autograd.grad(layer(x).square().sum(), x)[0], wanted, rtol=1e-4, atol=1e-5)


def test_another_dtype_unpacks():
    layer, x = layers()[0]
    wanted = layer(x)
    pack(layer)
    twice = layer.to(torch.float64)
    assert type(twice) is nn.Linear and twice.weight.dtype == torch.float64
    assert torch.allclose(twice(x.double()).float(), wanted, atol=1e-6)


def test_loading_unpacks():
    (layer, x), (other, _) = layers()[2], layers()[2]
    nn.init.normal_(other.weight)
    pack(layer)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other(x))


def test_a_packed_network_saves_as_the_plain_one():
    model = AutoencoderKL(tiny.AUTOENCODER)
    plain, packed = io.BytesIO(), io.BytesIO()
    torch.save(dict(model.state_dict()), plain)
    pack(model)
    torch.save(dict(model.state_dict()), packed)
    plain.seek(0), packed.seek(0)
    one, two = torch.load(plain), torch.load(packed)
    assert list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


def test_a_copy_is_unpacked_alone():
    layer, x = layers()[0]
    net = nn.Sequential(layer)
    pack(net)
    wanted, twin = net(x), shared_copy(net)
    unpack(twin)
    assert type(net[0]) is PackedLinear and torch.equal(net(x), wanted)
    assert type(twin[0]) is nn.Linear


def test_deep_and_pickled_copies_are_plain():
    layer, x = layers()[2]
    wanted = layer(x)
    pack(layer)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is nn.Conv2d and torch.equal(twin(x), wanted)
    assert type(layer) is PackedConv2d


def test_moved_copies_are_plain():
    net = nn.Sequential(layers()[0][0])
    pack(net)
    assert moved(net, torch.device("cpu"), torch.float64)[0].weight.dtype == torch.float64
    assert type(net[0]) is PackedLinear


def test_what_cannot_be_packed_stays():
    kept = [nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, padding="same"), nn.Linear(8, 8).half()]
    kept += [nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), nn.Linear(8, 8).double()]
    pack(nn.ModuleList(kept))
    assert all(type(layer) in (nn.Linear, nn.Conv2d) for layer in kept)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 9)])
def test_doubling_in_four_phases(dtype, size, monkeypatch):
    monkeypatch.setattr(packing, "phases_pay", lambda dtype: True)
    monkeypatch.setattr(packing.winograd, "pays", lambda doubled: False)
    torch.manual_seed(0)
    up, x = Upsample(24).to(dtype), torch.randn(2, 24, *size).to(dtype)
    exact = copy.deepcopy(up).double()(x.double())
    theirs, before = up(x), {name: t.clone() for name, t in up.state_dict().items()}
    pack(up)
    assert type(up.conv) is PhasesConv2d
    found = up(x)
    assert found.is_contiguous(memory_format=torch.channels_last) and found.shape == exact.shape
    assert (found - exact).norm() <= 1.5 * (theirs - exact).norm() + 1e-6 * exact.norm()
    odd = (2 * size[0] - 1, 2 * size[1] - 1)  # not doubled: the way down had rounded up
    assert torch.allclose(up(x, odd).double(), copy.deepcopy(up).double()(x.double(), odd), atol=2e-2)
    assert all(torch.equal(up.state_dict()[name], t) for name, t in before.items())
    unpack(up)
    assert torch.equal(up(x), theirs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_trials_answer_on_this_machine(dtype):
    """Whatever they answer, they run: a wrong call would count as "does not pay"."""
    for ways in (packing._packed_and_plain_linear, packing._packed_and_plain_conv, packing._phases_and_doubled):
        new, plain = ways(dtype)
        assert (new() - plain()).float().norm() <= 1e-2 * plain().float().norm()


def test_nothing_is_tried_in_bfloat16_where_torch_cannot_reorder_it(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(packing, "reorders", lambda dtype: dtype == torch.float32)
    monkeypatch.setattr(packing, "wins", lambda *_: pytest.fail("a trial was run"))
    for asks in (packing.linear_packs, packing.conv_packs, packing.phases_pay):
        assert not asks(torch.bfloat16)
    assert not packing.bfloat16_pays()


def test_training_mode_unpacks():
    net = nn.Sequential(*(layer for layer, _ in layers()), Upsample(24))
    names = [name for name, _ in net.named_parameters()]
    pack(net)
    assert [name for name, _ in net.eval().named_parameters()] != names
    assert [name for name, _ in net.train().named_parameters()] == names
    assert all(type(layer) in (nn.Linear, nn.Conv2d, Upsample) for layer in net)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", range(6))
def test_a_weight_that_is_kept_gives_the_same_bits(dtype, index):
    layer, x = layers(dtype)[index]
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    pack(layer)
    first = layer(x)
    for _ in range(10):
        if layer.packed.kept:
            break
        assert torch.equal(layer(x), first)
    assert layer.packed.kept and torch.equal(layer(x), first)
    assert all(torch.equal(layer.state_dict()[name], t) for name, t in before.items())


@torch.no_grad()
def test_a_convolution_orders_its_weight_at_once_and_a_linear_layer_for_many_rows():
    layer = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, stride=2))
    pack(layer)
    layer(torch.randn(1, 16, 4, 4))
    assert layer[0].packed.kept
    weight = torch.randn(32, 16)
    packed = Reordered(weight, lambda w: torch.ops.mkldnn._reorder_linear_weight(w, 512), either=True)
    assert torch.equal(packed.used(77), weight) and not packed.kept
    packed.used(256)
    assert packed.kept and torch.equal(packed.plain(), weight)


@torch.no_grad()
@pytest.mark.parametrize("index", [0, 2, 5])
def test_a_weight_that_is_kept_gives_its_first_memory_back(index):
    layer, _ = layers()[index]
    numbers = layer.weight.detach().numpy().copy()
    layer.weight, first = nn.Parameter(torch.from_numpy(numbers)), weakref.ref(numbers)
    del numbers
    pack(layer)
    assert first() is not None  # nothing was copied yet
    layer.packed.keep()
    assert first() is None


def test_malloc_is_as_before_when_there_is_no_memory_to_reorder(monkeypatch):
    def fails(weight):
        raise RuntimeError("no memory")

    calls = []
    monkeypatch.setattr(allocator, "keep_large_blocks", lambda: calls.append("kept"))
    with pytest.raises(RuntimeError, match="no memory"):
        Reordered(torch.zeros(2, 2), fails).keep()
    assert calls == ["kept"]


@torch.no_grad()
def test_copies_keep_one_weight_together():
    net = nn.Sequential(layers()[0][0])
    pack(net)
    twin = shared_copy(net)
    twin(torch.randn(1, 512, 24))
    assert net[0].packed.kept and net[0].packed is twin[0].packed


@torch.no_grad()
def test_loading_changes_no_other_module():
    (layer, x), (other, _) = layers()[0], layers()[0]
    nn.init.normal_(other.weight)
    wanted, twin = layer(x), shared_copy(layer)
    pack(twin)
    twin.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), wanted) and torch.equal(twin(x), other(x))


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_map_of_one_pixel_sees_the_middle_alone(dtype):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(32, 48, 3, padding=1).to(dtype), torch.randn(2, 32, 1, 1).to(dtype)
    exact = copy.deepcopy(layer).double()(x.double())
    pack(layer)
    first = layer(x)
    assert first.shape == (2, 48, 1, 1) and (first - exact).norm() <= (1e-6 if dtype == torch.float32 else 5e-3) * 48
    assert all(torch.equal(layer(x), first) for _ in range(10)) and not layer.packed.kept
    layer.packed.keep()
    assert torch.equal(layer(x), first)


def test_where_the_order_depends_on_the_map_it_follows_the_map(monkeypatch):
    made = []

    def reorder(weight, **how):
        made.append(how.get("image"))
        return reordered_weight(weight, 32, **how)

    monkeypatch.setattr(reordered, "orders_by_size", lambda: True)
    weight = torch.randn(48, 32, 3, 3, generator=torch.Generator().manual_seed(0))
    packed = Reordered(weight, reorder)
    small, large = (2, 8, 8), (2, 32, 32)
    for size in (small, large, large, small):
        x = torch.ones(size[0], 32, *size[1:]).contiguous(memory_format=torch.channels_last)
        found = torch.ops.mkldnn._convolution_pointwise(x, packed.used(1024, size), None, *SAME, "none", [], "")
        torch.testing.assert_close(found, F.conv2d(x, weight, padding=1), rtol=1e-4, atol=1e-4)
    assert made == [small, large, small] and packed.kept
    assert torch.equal(packed.copy(), weight)
