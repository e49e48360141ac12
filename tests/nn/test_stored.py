"""Layers that keep their weights in fewer bits: how near they are, and their products forward and back."""

from typing import Any

import pytest
import torch
from torch import nn

from latent_diffusion.nn.stored import FORMATS, StoredLayer, store

STEPS = {"float32": 0.0, "bfloat16": 2**-8, "float8": 2**-4, "int8": 0.5 / 127, "nf4": 0.16}
"""Largest error of a weight: of itself for floating-point formats, of the largest one that shares its scale else."""
CODE = "00000111111112222233344445556667788899aaabbbccccddddeeeeeeefffff"
LAYERS = {
    "linear": lambda: (nn.Linear(48, 40), (3, 5, 48)),
    "without bias": lambda: (nn.Linear(48, 40, bias=False), (3, 48)),
    "convolution": lambda: (nn.Conv2d(6, 10, 3, padding=1), (2, 6, 9, 7)),
    "stride 2": lambda: (nn.Conv2d(6, 10, 3, stride=2, padding=1), (2, 6, 8, 8)),
}


def drawn(layer: str):
    torch.manual_seed(0)
    made, shape = LAYERS[layer]()
    return made.requires_grad_(False), torch.randn(shape)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("layer", LAYERS)
def test_products_are_those_of_the_weight_that_is_kept(form, layer):
    stored, x = drawn(layer)
    exact = stored.weight.clone()
    store([stored], form, torch.device("cpu"))
    assert isinstance(stored, StoredLayer) and "weight" not in dict(stored.named_parameters())
    weight = stored.weight
    largest = exact.abs() if "float" in form else exact.abs().max()
    assert ((weight - exact).abs() <= STEPS[form] * largest + 1e-3 * (form == "float8")).all()
    whole, _ = drawn(layer)
    whole.weight.data = weight
    x, same = x.requires_grad_(), x.detach().clone().requires_grad_()
    made, wanted = stored(x), whole(same)
    gradient = torch.randn_like(made)
    made.backward(gradient)
    wanted.backward(gradient)
    torch.testing.assert_close(made, wanted)
    torch.testing.assert_close(x.grad, same.grad)
    assert set(stored.state_dict()) >= {"bits"}


def test_four_bits_are_the_nearest_values_of_their_table():
    """Against bitsandbytes 0.50.2, which rounds to the same 16 values: its code for these weights."""
    stored: Any = nn.Linear(64, 1, bias=False).requires_grad_(False)
    stored.weight.data = torch.linspace(-2, 2, 64)[None]
    store([stored], "nf4", torch.device("cpu"))
    assert bytes(stored.stored["bits"].tolist()).hex() == CODE


def test_products_in_float64_and_under_autocast_have_their_format():
    stored, x = drawn("linear")
    store([stored], "int8", torch.device("cpu"))
    assert stored.double()(x.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert stored.float()(x).dtype == torch.bfloat16
