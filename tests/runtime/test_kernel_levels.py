"""The kernels in C at each level of processor: equal bits with AVX2 and AVX-512, and NaN passed on."""

import pytest
import torch
from torch import nn

from latent_diffusion.runtime.cpu.native import (
    attention,
    eight_bits,
    gated,
    group_norm,
    library,
    training_attention,
    winograd,
)
from latent_diffusion.runtime.cpu.native.eight_bits import EightBits
from latent_diffusion.runtime.cpu.native.library import Level

DTYPES = [torch.float32, torch.bfloat16]


def draw(*size, dtype=torch.float32):
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size))).to(dtype)


def norm(dtype):
    layer = nn.GroupNorm(4, 144, dtype=dtype).requires_grad_(False)
    return [group_norm.norm_silu(10 * draw(2, 144, 20, 21, dtype=dtype), layer)]


def gelu(dtype):
    x = draw(9, 2 * 37, dtype=dtype).requires_grad_()
    y = gated.gated(3 * x)
    return [y.detach(), *torch.autograd.grad(y.sum(), x)]


def attend(dtype):
    q, k, v = (draw(1, 2, n, 24) for n in (70, 130, 130))
    return [attention.attend(q, k, v)]


def training(dtype):
    q, k, v = (draw(1, 2, n, 22, dtype=dtype).requires_grad_() for n in (70, 130, 130))
    y = training_attention.attend(q, k, v)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), (q, k, v))]


def convolution(dtype):
    x, weight = draw(1, 272, 7, 9), draw(64, 272, 3, 3)
    return [
        winograd.convolve(x, winograd.panels(weight, doubled=doubled), None, 64, doubled=doubled)
        for doubled in (False, True)
    ]


def eight(dtype):
    x, weight = draw(1, 70, 9, 11, dtype=dtype), draw(40, 70, 3, 3)
    linear = eight_bits.multiply(eight_bits.rounded(x[0, 0]), EightBits.of(draw(33, 11), draw(33)))
    return [linear, eight_bits.convolve(x, EightBits.of(weight, None), 2, 1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", [norm, gelu, attend, training, convolution, eight])
def test_levels_give_the_same_bits(way, dtype, level, request):
    """But for plain C, which rounds between a product and its sum."""
    found = way(dtype)
    with pytest.MonkeyPatch.context() as highest:
        highest.delenv(library.VARIABLE)
        library.level.cache_clear()
        wanted = way(dtype)
    library.level.cache_clear()
    for a, b in zip(found, wanted, strict=True):
        if level >= Level.AVX2:
            assert torch.equal(a, b)
        else:
            assert (a.double() - b.double()).norm() <= (2e-6 if dtype == torch.float32 else 3e-3) * b.double().norm()


def at(level, compute):
    """What `compute` gives at a level, which runs its own kernel for 8 bits."""
    with pytest.MonkeyPatch.context() as variables:
        variables.setenv(library.VARIABLE, level.name.lower())
        library.level.cache_clear()
        made = compute()
    library.level.cache_clear()
    return made


@pytest.fixture
def exact():
    """The levels of this processor whose 8-bit layers give the same bits, each with a kernel of its own."""
    names = [each for each in Level if Level.AVX2 <= each <= library.level()]
    found = [each for each in names if hasattr(library.library(), f"multiply_bytes_{each.name.lower()}")]
    if len(found) < 2:
        pytest.skip("no two levels of this processor to compare")
    return found


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


# rows and inputs beside multiples of 16, of 64 and of what is multiplied at once, 256 or 512; outputs beside panels' 32
SIZES = [(1, 1, 1), (15, 17, 31), (16, 48, 33), (17, 64, 64), (31, 65, 97), (200, 528, 70), (97, 1089, 33)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, inputs, outputs", SIZES)
def test_products_of_bytes_are_the_same_at_every_level(rows, inputs, outputs, dtype, exact, threads):
    numbers = eight_bits.rounded(draw(rows, inputs, dtype=dtype))
    weight = EightBits.of(draw(outputs, inputs), draw(outputs))
    first, *others = (at(level, lambda: eight_bits.multiply(numbers, weight)) for level in exact)
    assert first.isfinite().all() and all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("channels, outputs, stride", [(1, 1, 1), (20, 40, 1), (64, 64, 1), (70, 33, 2)])
def test_convolutions_of_bytes_are_the_same_at_every_level(channels, outputs, stride, exact, threads):
    x, weight = 1 + draw(2, channels, 9, 11), EightBits.of(draw(outputs, channels, 3, 3), draw(outputs))
    first, *others = (at(level, lambda: eight_bits.convolve(x, weight, stride)) for level in exact)
    assert first.isfinite().all() and all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0x7FFFFFFF, -1])
def test_nan_of_any_bits_is_passed_on(bits, dtype, level):
    nan = torch.tensor([bits], dtype=torch.int32).view(torch.float32).to(dtype)
    if dtype == torch.bfloat16:
        nan = torch.tensor([bits >> 16], dtype=torch.int16).view(torch.bfloat16)
    assert nan.isnan().all()
    x = draw(1, 32, 5, 3, dtype=dtype)
    x[0, 9, 2, 1] = nan
    made = group_norm.norm_silu(x, nn.GroupNorm(4, 32, dtype=dtype).requires_grad_(False))
    assert made[:, 8:16].isnan().all() and made[:, 16:].isfinite().all() and made[:, :8].isfinite().all()
    x = draw(3, 38, dtype=dtype)
    x[1, 30] = nan  # the gate of the twelfth value
    assert gated.gated(x).isnan().nonzero().tolist() == [[1, 11]]
    q, k, v = (draw(1, 1, n, 8, dtype=dtype) for n in (40, 70, 70))
    q[0, 0, 3, 2] = nan
    found = training_attention.attend(q, k, v)
    assert found[0, 0, 3].isnan().all() and found[0, 0, 4:].isfinite().all()
    if dtype == torch.float32:
        found = attention.attend(q, k, v)
        assert found[0, 0, 3].isnan().all() and found[0, 0, 4:].isfinite().all()
