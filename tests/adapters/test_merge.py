"""Merging makes a second module; the first, and all that no adapter touches, stays the same object."""

import pytest
import torch
from torch import nn

from latent_diffusion.adapters.delta import Decomposed, Full, LowRank, Product
from latent_diffusion.adapters.forms import Update
from latent_diffusion.adapters.load_report import LoadReport
from latent_diffusion.adapters.lora_file import Adapter
from latent_diffusion.adapters.merge import adapted
from latent_diffusion.adapters.model_parts import parts_of
from latent_diffusion.adapters.stack import Stack
from latent_diffusion.errors import ConfigError


def test_touched_weights_are_new_and_all_others_shared(tiny_components, random_lora):
    unet, updates = tiny_components.unet, random_lora()["unet"]
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    twin = adapted(unet, [(updates, 0.5)])
    touched = {f"{path}.weight" for path in updates}
    for (name, ours), theirs in zip(unet.named_parameters(), twin.parameters(), strict=True):
        assert (ours is theirs) == (name not in touched)
        assert torch.equal(ours, before[name])
    path = next(iter(updates))
    weight = unet.get_submodule(path).weight
    wanted = weight + 0.5 * updates[path].weight.matrix(weight.flatten(1)).reshape(weight.shape)
    torch.testing.assert_close(twin.get_submodule(path).weight, wanted)


def test_order_has_no_meaning_and_strength_0_is_no_change(tiny_components, random_lora):
    unet, a, b = tiny_components.unet, random_lora(1)["unet"], random_lora(2)["unet"]
    one, two = adapted(unet, [(a, 0.7), (b, -0.3)]), adapted(unet, [(b, -0.3), (a, 0.7)])
    for x, y in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)
    none = adapted(unet, [(a, 0.0)])
    assert all(x is y for x, y in zip(none.parameters(), unet.parameters(), strict=True))


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_bias_and_lengths(strength):
    layer = nn.Linear(3, 2)
    low = LowRank(Product(torch.ones(2, 1), torch.ones(1, 3)), 1.0)
    update = Update("DoRA LoRA", Decomposed(low, torch.tensor([1.0, 2.0]), False), torch.tensor([3.0, 4.0]))
    twin = adapted(nn.Sequential(layer), [({"0": update}, strength)])[0]
    turned = layer.weight + 1
    full = torch.tensor([[1.0], [2.0]]) * turned / turned.norm(dim=1, keepdim=True)
    torch.testing.assert_close(twin.weight, layer.weight + strength * (full - layer.weight))
    torch.testing.assert_close(twin.bias, layer.bias + strength * torch.tensor([3.0, 4.0]))


def test_sums_are_formed_in_float32_and_rounded_once():
    layer = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    layer.weight.data.fill_(1.0)
    small = Update("full", Full(torch.full((1, 1), 2**-10)), None)  # far below bfloat16's 2^-7 at 1
    twin = adapted(nn.Sequential(layer), [({"0": small}, 1.0)] * 8)[0]
    assert twin.weight.dtype == torch.bfloat16 and twin.weight.item() == 1 + 2**-7
    assert not twin.weight.requires_grad or layer.weight.requires_grad


def named(name, updates):
    return Adapter(LoadReport(name, "", "0" * 12, "kohya", None, {}, (), ()), updates)


@pytest.fixture
def stack(random_lora):
    return Stack().load(named("a", random_lora(1)), 0.5).load(named("b", random_lora(2)), {"unet": 2.0})


def weights(components):
    return [tensor for module in parts_of(components).values() for tensor in module.parameters()]


def test_whatever_is_done_and_undone_ends_in_the_same_numbers(stack, tiny_components):
    plain, drawn = weights(tiny_components), weights(stack.apply(tiny_components))
    assert not all(x is y for x, y in zip(plain, drawn, strict=True))
    fused = stack.fuse(None, 1.0)
    assert not fused.active and all(map(torch.equal, weights(fused.apply(tiny_components)), drawn))
    assert all(map(torch.equal, weights(fused.unfuse().apply(tiny_components)), drawn))
    assert fused.unfuse().active.keys() == {"a", "b"}
    gone = fused.delete(["a", "b"])
    assert all(map(torch.equal, weights(gone.apply(tiny_components)), drawn))  # merged ones stay
    assert all(x is y for x, y in zip(weights(gone.unfuse().apply(tiny_components)), plain, strict=True))
    off = stack.set([], [])
    assert off.apply(tiny_components) is tiny_components and off.loaded.keys() == {"a", "b"}
    on = off.set(["b", "a"], [{"unet": 2.0}, 0.5])
    for x, y in zip(weights(on.apply(tiny_components)), drawn, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)


def test_a_strength_for_each_part(stack, tiny_components):
    only = stack.set(["a"], [{"unet": 0.0}])  # what is left out is 1
    changed = only.apply(tiny_components)
    assert changed.unet is tiny_components.unet
    assert changed.text_encoder is not tiny_components.text_encoder
    (applied,) = only.applied()
    assert (applied.kind, applied.name, dict(applied.strengths)) == ("lora", "a", {"unet": 0.0, "text_encoder": 1.0})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.load(s.loaded["a"]), "'a' is loaded already"),
        (lambda s: s.set(["c"], [1.0]), "no adapter 'c'.*loaded are a, b"),
        (lambda s: s.set(["a"], [1.0, 2.0]), "2 weights for 1 adapters"),
        (lambda s: s.set(["a"], [float("nan")]), "no finite number"),
        (lambda s: s.set(["a"], [float("-inf")]), "no finite number"),
        (lambda s: s.set(["a"], [1e30]), r"weight 1e\+30 is out of range; use -100 to 100"),
        (lambda s: s.set(["a"], [{"unet": -(10**400)}]), "use -100 to 100"),
        (lambda s: s.set(["a"], [100.0]).fuse(["a"], 2.0), "weight 200.0 is out of range"),
        (lambda s: s.set(["a"], [{"vae": 1.0}]), "'vae'"),
        (lambda s: s.delete(["c"]), "no adapter 'c'"),
        (lambda s: s.set([], []).fuse(["a"], 1.0), "not active"),
        (lambda s: s.forget(["x"]), "no learned word 'x'"),
    ],
)
def test_what_cannot_be_is_an_error(stack, change, words):
    with pytest.raises(ConfigError, match=words):
        change(stack)
