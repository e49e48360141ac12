"""Attention in C against the formula in float64; what it cannot take goes to the plain kernels."""

import pytest
import torch
import torch.nn.functional as F

from latent_diffusion.nn.attention import automatic
from latent_diffusion.runtime.cpu.native import attention
from latent_diffusion.runtime.cpu.native.attention import attend, attends

native = pytest.mark.usefixtures("level")


def heads(batch, tokens, count, width, dtype):
    return torch.randn(batch, tokens, count * width).to(dtype).unflatten(-1, (count, width)).transpose(1, 2)


def error(found, wanted):
    return ((found.double() - wanted).norm() / wanted.norm()).item()


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "count", "queries", "keys", "width"),
    [
        (2, 3, 70, 70, 40),
        (1, 1, 1, 1, 8),
        (2, 2, 64, 77, 80),
        (1, 2, 33, 130, 160),
        (1, 1, 50, 65, 512),
        (3, 2, 17, 5, 6),
        (1, 2, 200, 129, 2),
        (2, 8, 8, 2048, 160),
        (1, 1, 130, 300, 512),
    ],
)
def test_as_exact_as_the_fused_kernel_of_torch(dtype, batch, count, queries, keys, width):
    if not attends(dtype):
        pytest.skip("no kernel in C for bfloat16 at this level")
    torch.manual_seed(0)
    q = heads(batch, queries, count, width, dtype)
    k, v = (heads(batch, keys, count, width, dtype) for _ in range(2))
    wanted = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    theirs = error(F.scaled_dot_product_attention(q, k, v), wanted)
    assert error(attend(q, k, v), wanted) <= 1.1 * theirs + 1e-6


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_any_size(dtype):
    """Far apart, all equal, rising along the keys (each block has a new maximum), and one that takes all."""
    if not attends(dtype):
        pytest.skip("no kernel in C for bfloat16 at this level")
    torch.manual_seed(0)
    q, k, v = (heads(1, 150, 2, 16, dtype) for _ in range(3))
    rising = k * torch.linspace(0, 30, 150).to(dtype)[:, None]
    for keys in (100 * k, 0 * k, rising, k.clone().index_fill_(2, torch.tensor([149]), 50.0)):
        wanted = F.scaled_dot_product_attention(q.double(), keys.double(), v.double())
        theirs = error(F.scaled_dot_product_attention(q, keys, v), wanted)
        assert error(attend(q, keys, v), wanted) <= 1.1 * theirs + 2e-6


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_not_lost(dtype, place, number):
    """Wherever the formula gives NaN, the kernel gives NaN, and elsewhere the same numbers."""
    if not attends(dtype):
        pytest.skip("no kernel in C for bfloat16 at this level")
    torch.manual_seed(0)
    given = [heads(1, tokens, 2, 16, dtype) for tokens in (70, 150, 150)]
    for row in (3, 66):  # of the first block of keys, and of the second
        spoilt = [x.clone() for x in given]
        spoilt[place][0, 1, row, 5] = number
        wanted, found = F.scaled_dot_product_attention(*(x.double() for x in spoilt)), attend(*spoilt)
        assert (found.isfinite() | ~wanted.isfinite())[0, 0].all()
        assert not found[~wanted.isfinite()].isfinite().any()
        kept = wanted.isfinite() & found.isfinite()
        assert (found.double() - wanted)[kept].abs().max() <= 0.02


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sign", [1, -1])
def test_scores_that_overflow_are_not_lost(dtype, sign):
    if not attends(dtype):
        pytest.skip("no kernel in C for bfloat16 at this level")
    q, k = torch.full((1, 1, 40, 8), 1e20), torch.full((1, 1, 70, 8), sign * 1e20)
    assert attend(q.to(dtype), k.to(dtype), torch.ones(1, 1, 70, 8, dtype=dtype)).isnan().all()


@native
def test_bits_do_not_depend_on_threads_or_neighbours():
    torch.manual_seed(0)
    q, k, v = (heads(4, 90, 2, 40, torch.float32) for _ in range(3))
    wanted, threads = attend(q, k, v), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(attend(q, k, v), wanted)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.cat([attend(q[i : i + 1], k[i : i + 1], v[i : i + 1]) for i in range(4)]), wanted)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.double(),
        lambda x: x.half(),
        lambda x: x.requires_grad_(),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),  # channels not side by side
        lambda x: torch.randn(1, 1, 4, 1000),  # wider than the scratch space
        lambda x: torch.randn(1, 1, 4, 7).bfloat16(),  # pairs do not come out
    ],
)
def test_everything_else_goes_to_the_plain_kernels(change, monkeypatch):
    taken = []
    monkeypatch.setattr(attention, "automatic", lambda *qkv: taken.append(True) or automatic(*qkv))
    x = change(torch.randn(1, 2, 12, 8))
    assert torch.equal(attend(x, x, x), automatic(x, x, x)) and taken


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(attention, "find", lambda name: None)
    x = torch.randn(1, 2, 12, 8)
    assert not attends(torch.float32)
    assert torch.equal(attend(x, x, x), automatic(x, x, x))
