"""Trainable changes of a layer: zero at the start, equal to PEFT's, and read back from their factors as they were."""

import copy

import pytest
import torch
from torch import nn

from latent_diffusion.adapters.forms import update_of
from latent_diffusion.nn.low_rank import Adapted, DoRA, Hadamard, Kronecker, LowRank, alpha_scale, split_dimension

RANK, ALPHA = 4, 2.0
LAYERS = {
    "linear": lambda: nn.Linear(24, 36),
    "linear without bias": lambda: nn.Linear(24, 36, bias=False),
    "1x1": lambda: nn.Conv2d(24, 36, 1),
    "3x3": lambda: nn.Conv2d(24, 36, 3, padding=1),
    "3x3, stride 2": lambda: nn.Conv2d(24, 36, 3, stride=2, padding=1),
}
FORMS = {"LoRA": LowRank, "LoHa": Hadamard, "LoKr": Kronecker}
CASES = [(form, layer, dora) for form in FORMS for layer in LAYERS for dora in (False, True)]


def make(form, layer, dora):
    """Return an adapted layer with random factors, and its input."""
    torch.manual_seed(0)
    plain = LAYERS[layer]()
    change = FORMS[form](plain, RANK, alpha_scale(ALPHA, RANK), torch.Generator().manual_seed(1))
    change = DoRA(plain, change) if dora else change
    x = torch.randn(2, 5, 24) if isinstance(plain, nn.Linear) else torch.randn(2, 24, 7, 6)
    return Adapted(plain, change), x


def shake(adapted):
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in adapted.change.named_parameters():
            size = 0.3 * torch.rand(parameter.shape, generator=draw) if "dora" in name else 0.2
            noise = torch.randn(parameter.shape, generator=draw) if "dora" not in name else 1.0
            parameter.add_(size * noise)


@pytest.mark.parametrize(("form", "layer", "dora"), CASES)
def test_starts_as_the_frozen_layer_and_trains_only_its_factors(form, layer, dora):
    adapted, x = make(form, layer, dora)
    torch.testing.assert_close(adapted(x), adapted.layer(x), rtol=1e-5, atol=1e-6)
    adapted(x).square().sum().backward()
    assert all(parameter.grad is None for parameter in adapted.layer.parameters())
    assert any(parameter.grad.abs().max() > 0 for parameter in adapted.change.parameters())
    shake(adapted)
    adapted.zero_grad()
    adapted(x).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in adapted.change.parameters())
    adapted.active = False
    assert torch.equal(adapted(x), adapted.layer(x))


@pytest.mark.parametrize(("form", "layer", "dora"), CASES)
def test_its_factors_read_as_an_adapter_file_make_the_same_weight(form, layer, dora):
    adapted, x = make(form, layer, dora)
    shake(adapted)
    fields = {name.rpartition(".")[2]: value.detach() for name, value in adapted.change.named_parameters()}
    weight, bias = adapted.layer.weight.detach(), adapted.layer.bias
    update = update_of(fields | {"alpha": torch.tensor(ALPHA)}, weight, bias, lambda _: 1.0)
    merged = copy.deepcopy(adapted.layer)
    merged.weight = nn.Parameter(weight + update.weight.matrix(weight.flatten(1)).view_as(weight))
    torch.testing.assert_close(adapted(x), merged(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", ["linear", "1x1", "3x3"])
@pytest.mark.parametrize("dora", [False, True])
def test_lora_and_dora_equal_peft_in_output_and_gradients(layer, dora):
    peft = pytest.importorskip("peft")
    adapted, x = make("LoRA", layer, dora)
    shake(adapted)
    host = nn.Sequential(copy.deepcopy(adapted.layer).requires_grad_(False))
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"], use_dora=dora)
    theirs = peft.inject_adapter_in_model(config, host)[0]
    change = adapted.change.direction if dora else adapted.change
    pairs = [(change.down, theirs.lora_A["default"].weight), (change.up, theirs.lora_B["default"].weight)]
    if dora:
        pairs.append((adapted.change.dora_scale, theirs.lora_magnitude_vector["default"].weight))
    with torch.no_grad():
        for ours, other in pairs:
            other.copy_(ours.view_as(other))
    wanted, found = theirs(x), adapted(x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    wanted.square().sum().backward()
    found.square().sum().backward()
    for ours, other in pairs:
        torch.testing.assert_close(ours.grad, other.grad.view_as(ours), rtol=2e-4, atol=2e-4)


def test_the_same_generator_draws_the_same_factors():
    one, two = (make("LoRA", "3x3", False)[0].change.down for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("size", "factor", "wanted"),
    [(320, None, (16, 20)), (7, None, (1, 7)), (64, 4, (4, 16)), (64, 32, (2, 32)), (64, 5, (8, 8)), (1, None, (1, 1))],
)
def test_dimensions_are_split_near_the_root_or_by_the_factor(size, factor, wanted):
    assert split_dimension(size, factor) == wanted


def test_kronecker_of_two_whole_matrices_has_scale_one():
    change = Kronecker(nn.Linear(16, 16), 64, 0.25, torch.Generator().manual_seed(0))
    assert change.scale == 1.0 and {name for name, _ in change.named_parameters()} == {"lokr_w1", "lokr_w2"}


def test_rank_stabilised_scale():
    assert alpha_scale(8, 16) == 0.5 and alpha_scale(8, 16, rank_stabilised=True) == 2.0
