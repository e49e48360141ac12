"""GroupNorm and SiLU of channels_last maps in two passes over memory, in Triton.

    y = silu((x + a - mean) / sqrt(var + eps) * weight + bias),   a = what is added to each channel first

Pass one takes mean and squared deviations of every channel over a chunk of pixels; a small kernel joins those of each
group and folds everything into y = silu(x * scale + shift) with one scale and one shift a channel; pass two applies it.
Statistics are joined as in Chan, Golub & LeVeque 1979, eq. (2.1), in float32, so that a large mean costs no digits.
Sizes of maps are plain numbers to the kernels: no new size compiles anything.
"""

# Triton reads annotations its own way: a constexpr is given as a plain value, a tensor may start as a number.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

__all__ = ["group_norm"]

PIXELS = tl.constexpr(32)  # of a tile
CHANNELS = tl.constexpr(64)  # of a tile
MOST_CHUNKS = 512  # of an image; enough to fill a GPU, few enough to be joined in no time
FUSED = {"enable_fp_fusion": True}  # multiply-adds rounded once; the default differs between versions of Triton
JOINED = tl.constexpr(1024)  # statistics joined at once


@triton.jit(do_not_specialize=["pixels", "per_chunk", "chunks"])
def _moments(x, means, squares, pixels, per_chunk, chunks, channels):
    chunk, image = tl.program_id(0), tl.program_id(2)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    x += image.to(tl.int64) * pixels * channels
    mean = tl.zeros([CHANNELS], tl.float32)
    square = tl.zeros([CHANNELS], tl.float32)
    seen = 0.0
    for start in range(0, per_chunk, PIXELS):
        p = chunk * per_chunk + start + tl.arange(0, PIXELS)
        here = (p < pixels)[:, None] & (c < channels)[None, :]
        values = tl.load(x + p.to(tl.int64)[:, None] * channels + c[None, :], mask=here, other=0.0).to(tl.float32)
        count = tl.sum((p < pixels).to(tl.float32), axis=0)
        average = tl.sum(values, axis=0) / tl.maximum(count, 1.0)
        off = tl.where(here, values - average[None, :], 0.0)
        step, share = average - mean, count / tl.maximum(seen + count, 1.0)
        mean += step * share
        square += tl.sum(off * off, axis=0) + step * step * (seen * share)
        seen += count
    place = (image * chunks + chunk) * channels + c
    tl.store(means + place, mean, mask=c < channels)
    tl.store(squares + place, square, mask=c < channels)


@triton.jit
def _added(bias, time, image, channels, c, here, HAS_BIAS: tl.constexpr, HAS_TIME: tl.constexpr):
    total = tl.zeros([JOINED], tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + c, mask=here, other=0.0).to(tl.float32)
    if HAS_TIME:
        total += tl.load(time + image * channels + c, mask=here, other=0.0).to(tl.float32)
    return total


@triton.jit(do_not_specialize=["pixels", "per_chunk", "chunks"])
def _join(
    means, squares, weight, offset, bias, time, scale, shift,
    pixels, per_chunk, chunks, channels, width, eps,
    HAS_BIAS: tl.constexpr, HAS_TIME: tl.constexpr,
):  # fmt: skip
    first, image = tl.program_id(0) * width, tl.program_id(1)
    entries = chunks * width
    total = tl.zeros([JOINED], tl.float32)
    for start in range(0, entries, JOINED):
        i = start + tl.arange(0, JOINED)
        here, chunk, c = i < entries, i // width, first + i % width
        count = tl.minimum(per_chunk, pixels - chunk * per_chunk).to(tl.float32)
        mean = tl.load(means + (image * chunks + chunk) * channels + c, mask=here, other=0.0)
        mean += _added(bias, time, image, channels, c, here, HAS_BIAS, HAS_TIME)
        total += tl.where(here, count * mean, 0.0)
    amount = pixels * 1.0 * width
    average = tl.sum(total, axis=0) / amount
    spread = tl.zeros([JOINED], tl.float32)
    for start in range(0, entries, JOINED):
        i = start + tl.arange(0, JOINED)
        here, chunk, c = i < entries, i // width, first + i % width
        count = tl.minimum(per_chunk, pixels - chunk * per_chunk).to(tl.float32)
        place = (image * chunks + chunk) * channels + c
        off = tl.load(means + place, mask=here, other=0.0) - average
        off += _added(bias, time, image, channels, c, here, HAS_BIAS, HAS_TIME)
        square = tl.load(squares + place, mask=here, other=0.0)
        spread += tl.where(here, square + count * off * off, 0.0)
    deviation = tl.sqrt(tl.sum(spread, axis=0) / amount + eps)
    for start in range(0, width, JOINED):
        i = start + tl.arange(0, JOINED)
        here, c = i < width, first + i
        factor = tl.load(weight + c, mask=here, other=0.0).to(tl.float32) / deviation
        a = _added(bias, time, image, channels, c, here, HAS_BIAS, HAS_TIME)
        tl.store(scale + image * channels + c, factor, mask=here)
        constant = tl.load(offset + c, mask=here, other=0.0).to(tl.float32)
        tl.store(shift + image * channels + c, constant + (a - average) * factor, mask=here)


@triton.jit(do_not_specialize=["pixels"])
def _apply(x, y, scale, shift, pixels, channels, SILU: tl.constexpr):
    image = tl.program_id(2)
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    here = (p < pixels)[:, None] & (c < channels)[None, :]
    place = image.to(tl.int64) * pixels * channels + p.to(tl.int64)[:, None] * channels + c[None, :]
    factor = tl.load(scale + image * channels + c, mask=c < channels, other=0.0)
    constant = tl.load(shift + image * channels + c, mask=c < channels, other=0.0)
    values = tl.load(x + place, mask=here, other=0.0).to(tl.float32) * factor[None, :] + constant[None, :]
    if SILU:
        values = values / (1.0 + tl.exp(-values))
    tl.store(y + place, values.to(y.dtype.element_ty), mask=here)


def group_norm(
    x: Tensor, norm: nn.GroupNorm, *, silu: bool, bias: Tensor | None = None, time: Tensor | None = None
) -> Tensor:
    """Return the normed map (B, C, H, W), channels_last, in the dtype of `x`; see `fusions.Norm`."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    pixels, groups = height * width, norm.num_groups
    tiles = triton.cdiv(pixels, PIXELS.value)
    per_chunk = triton.cdiv(tiles, MOST_CHUNKS) * PIXELS.value
    chunks, blocks = triton.cdiv(pixels, per_chunk), triton.cdiv(channels, CHANNELS.value)
    means, squares = x.new_empty((2, batch, chunks, channels), dtype=torch.float32)
    scale, shift = x.new_empty((2, batch, channels), dtype=torch.float32)
    y = torch.empty_like(x)
    time = None if time is None else time.contiguous()
    with torch.cuda.device_of(x):
        _moments[(chunks, blocks, batch)](x, means, squares, pixels, per_chunk, chunks, channels, **FUSED)
        _join[(groups, batch)](
            means, squares, norm.weight, norm.bias,
            norm.bias if bias is None else bias, scale if time is None else time, scale, shift,
            pixels, per_chunk, chunks, channels, channels // groups, norm.eps,
            HAS_BIAS=bias is not None, HAS_TIME=time is not None, **FUSED,
        )  # fmt: skip
        _apply[(tiles, blocks, batch)](x, y, scale, shift, pixels, channels, SILU=silu, **FUSED)
    return y
