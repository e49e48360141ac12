"""Attention in C and its gradient against the formula in float64; what it cannot take goes to the plain kernels."""

import pytest
import torch
import torch.nn.functional as F

from latent_diffusion.nn.attention import automatic, written_out
from latent_diffusion.runtime.cpu.native.training_attention import NARROW, attend

native = pytest.mark.usefixtures("level")
SHAPES = [  # batch, heads, queries, keys, channels of a head
    (2, 3, 70, 70, 8),
    (1, 1, 1, 1, 16),
    (2, 2, 64, 77, 16),
    (1, 2, 33, 130, 32),
    (1, 2, 300, 40, 20),
    (3, 2, 17, 5, 6),
    (1, 1, 40, 50, 3),
    (1, 1, 260, 257, 80),
]


def inputs(batch, heads, queries, keys, width, dtype):
    """q, k, v as views of tokens, and a gradient of the result."""
    generator = torch.Generator().manual_seed(queries * keys)
    sizes = (queries, keys, keys, queries)
    tokens = [torch.randn(batch, n, heads * width, generator=generator).to(dtype) for n in sizes]
    return [x.unflatten(-1, (heads, width)).transpose(1, 2) for x in tokens]


def with_gradients(kernel, q, k, v, gradient):
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = kernel(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient)]


def errors(found, wanted):
    return [((a.double() - b).norm() / b.norm()).item() if b.norm() else a.norm().item() for a, b in zip(found, wanted)]


@native
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_gradients_are_those_of_the_formula(shape):
    given = inputs(*shape, torch.float32)
    wanted = with_gradients(written_out, *(x.double() for x in given))
    assert max(errors(with_gradients(attend, *given), wanted)) < 2e-6


@native
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[-1] <= NARROW])
def test_bfloat16_is_no_less_exact_than_torch(shape):
    given = inputs(*shape, torch.bfloat16)
    wanted = with_gradients(written_out, *(x.double() for x in given))
    theirs = errors(with_gradients(F.scaled_dot_product_attention, *given), wanted)
    for ours, other in zip(errors(with_gradients(attend, *given), wanted), theirs):
        assert ours <= 1.1 * other + 1e-5


@native
def test_any_number_of_threads_gives_the_same_bits():
    given = inputs(2, 3, 300, 77, 8, torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(with_gradients(attend, *given))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@native
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_nan_is_not_lost(place):
    given = inputs(1, 1, 40, 20, 8, torch.float32)
    given[place][0, 0, 3, 2] = float("nan")
    found = with_gradients(attend, *given)
    wanted = with_gradients(written_out, *given)
    for a, b in zip(found, wanted):
        assert not (b.isnan() & ~a.isnan()).any()


@native
def test_very_different_scores_neither_overflow_nor_vanish():
    given = inputs(1, 2, 20, 30, 8, torch.float32)
    given[0] = given[0] * 200
    wanted = with_gradients(written_out, *(x.double() for x in given))
    assert max(errors(with_gradients(attend, *given), wanted)) < 1e-4


@native
def test_any_strides():
    given = inputs(2, 2, 24, 12, 8, torch.float32)
    turned = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in given]
    for a, b in zip(with_gradients(attend, *given), with_gradients(attend, *turned)):
        assert torch.equal(a, b)
    leaf = given[0].detach().requires_grad_()
    attend(leaf, *given[1:3]).sum().backward()  # a gradient without strides
    assert leaf.grad is not None and leaf.grad.isfinite().all()


@pytest.mark.parametrize(("dtype", "width"), [(torch.float64, 8), (torch.bfloat16, 128)])
def test_the_rest_goes_to_the_plain_kernels(dtype, width):
    q, k, v, _ = inputs(1, 2, 10, 12, width, dtype)
    assert torch.equal(attend(q, k, v), automatic(q, k, v))
    assert attend(q[:0], k[:0], v[:0]).shape == (0, 2, 10, width)
