"""Linear layers and convolutions with weights and inputs of 8 bits, in C (eight_bits.c).

Weights are rounded to -127 .. 127, with a scale for each output. Inputs are rounded as they come to 0 .. 255, with a
scale and a zero for each token, and where a kernel of 3x3 sums over pixels for each image: nothing is calibrated
beforehand, and a picture's numbers do not depend on the batch it is in. Sums of products are exact.

Jacob et al. 2018, arXiv:1712.05877, section 2; a scale for each token: Dettmers et al. 2022, arXiv:2208.07339.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_diffusion.runtime.cpu.native.library import address, find, kernel

__all__ = ["EightBits", "Rounded", "available", "convolve", "double", "multiply", "rounded", "takes"]

FORMATS = (torch.float32, torch.bfloat16)
CHUNK, PANEL, FOUR = 16, 32, 4  # inputs and outputs are rounded up to the first two; inputs are multiplied four at once
MOST = (2**31 - 1) // (255 * 127)  # products of one output: sums of 32 bits hold any so many


class _Rounding(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "channels", "depth", "each")),
        *((name, ctypes.c_int) for name in ("bfloat16", "threads")),
    ]


class _Product(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "out_height", "out_width")),
        *((name, ctypes.c_int64) for name in ("side", "stride", "top", "left", "apart", "down", "right")),
        *((name, ctypes.c_int64) for name in ("depth", "outputs", "each")),
        *((name, ctypes.c_int) for name in ("bfloat16", "threads")),
    ]


@dataclass(frozen=True, eq=False)
class EightBits:
    """A weight and a bias, as the kernel takes them; outputs are rounded up to PANEL."""

    panels: Tensor  # int8, [outputs / PANEL][taps][inputs / 4][PANEL][4]
    scales: Tensor  # (outputs,) float32
    columns: Tensor  # (outputs,) int32: the sum of each output's weights
    bias: Tensor  # (outputs,) float32
    outputs: int
    side: int  # of the kernel; 1 for a linear layer

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> "EightBits":
        """Round a weight (outputs, inputs) or (outputs, inputs, side, side).

        Raises:
            ValueError: more than `MOST` products for each output.
        """
        weight = weight.detach().flatten(2).transpose(1, 2) if weight.dim() > 2 else weight.detach()[:, None]
        outputs, taps, inputs = weight.shape
        if taps * inputs > MOST:
            raise ValueError(f"8 bits: {taps * inputs} products for each output, more than {MOST} may overflow 32 bits")
        count, depth = -(-outputs // PANEL), -(-inputs // CHUNK) * CHUNK
        panels = torch.empty(count, taps, depth // FOUR, PANEL, FOUR, dtype=torch.int8)
        scales, columns = torch.empty(count * PANEL), torch.empty(count * PANEL, dtype=torch.int32)
        for k in range(count):  # one panel at a time: memory never holds the weight once more
            here = slice(k * PANEL, (k + 1) * PANEL)
            part = weight[here].float()
            scale = part.abs().amax((1, 2)).clamp(min=1e-30) / 127
            whole = (part / scale[:, None, None]).round_().to(torch.int8)
            whole = F.pad(whole, (0, depth - inputs, 0, 0, 0, PANEL - len(part)))
            panels[k] = whole.unflatten(2, (-1, FOUR)).permute(1, 2, 0, 3)
            scales[here], columns[here] = F.pad(scale, (0, PANEL - len(part))), whole.sum((1, 2), dtype=torch.int32)
        bias = torch.zeros(outputs) if bias is None else bias.detach().float()
        return cls(panels, scales, columns, F.pad(bias, (0, -outputs % PANEL)), outputs, round(taps**0.5))

    def whole(self) -> Tensor:
        """Return the rounded weight of a linear layer (outputs, inputs), float32; inputs are rounded up to CHUNK."""
        numbers = self.panels[:, 0].permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
        return (numbers * self.scales[:, None])[: self.outputs]


@dataclass(frozen=True, eq=False)
class Rounded:
    """Rows of numbers of 8 bits, whatever layer they are multiplied by."""

    numbers: Tensor  # (rows, depth) uint8, whose channels are rounded up to CHUNK
    scales: Tensor  # (groups,) float32
    zeros: Tensor  # (groups,) int32
    dtype: torch.dtype  # of what was rounded


def available() -> bool:
    """Whether the kernels were built, and this processor runs them."""
    return find("multiply_bytes") is not None


def takes(x: Tensor) -> bool:
    """Whether the kernels can compute for `x`."""
    return x.device.type == "cpu" and x.dtype in FORMATS and x.numel() > 0


def rounded(x: Tensor, each: int = 1) -> Rounded:
    """Round `x` (..., channels), whose last dimension is contiguous; `each` rows share a scale."""
    x = x.contiguous()
    channels = x.shape[-1]
    rows, depth = x.numel() // channels, -(-channels // CHUNK) * CHUNK
    numbers = torch.empty(rows, depth, dtype=torch.uint8)
    if depth > channels:
        numbers.zero_()
    scales, zeros = torch.empty(rows // each), torch.empty(rows // each, dtype=torch.int32)
    form = _Rounding(rows, channels, depth, each, x.dtype == torch.bfloat16, torch.get_num_threads())
    if kernel("round_to_bytes")(*map(address, (x, numbers, scales, zeros)), ctypes.byref(form)):
        raise MemoryError("8 bits: no memory for the ranges")
    return Rounded(numbers, scales, zeros, x.dtype)


def multiply(x: Rounded, weight: EightBits) -> Tensor:
    """Return the products (rows, outputs) of a linear layer, in the format that was rounded."""
    out = torch.empty(len(x.numbers), weight.outputs, dtype=x.dtype)
    size = 1, 1, len(x.numbers), 1, len(x.numbers), 1, 1, 0, 0, 1, 0, 0
    _multiply(x, weight, None, out, size, 1)
    return out


def convolve(x: Tensor, weight: EightBits, stride: int = 1, padding: int = 1, added: Tensor | None = None) -> Tensor:
    """Convolve `x` (B, inputs, H, W) to (B, outputs, H', W'), channels_last, with zeros around.

    `added`, of the result's size and format, is added to it.

    Raises:
        ValueError: `added` has another size or format.
    """
    batch, _, height, width = x.shape
    high, wide = ((side + 2 * padding - weight.side) // stride + 1 for side in (height, width))
    size = batch, weight.outputs, high, wide
    if added is not None:
        if added.shape != size or added.dtype != x.dtype:
            raise ValueError(f"convolution: {tuple(added.shape)} {added.dtype} is added to {size} {x.dtype}")
        added = added.contiguous(memory_format=torch.channels_last)
    numbers = rounded(x.permute(0, 2, 3, 1), height * width)
    out = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
    form = batch, height, width, high, wide, weight.side, stride, -padding, -padding, 1, 0, 0
    _multiply(numbers, weight, added, out, form, high * wide)
    return out


def double(x: Tensor, phases: Sequence[EightBits]) -> Tensor:
    """Double `x` (B, inputs, H, W) by repeated pixels, and convolve it to (B, outputs, 2 H, 2 W), channels_last.

    `phases` are four 2x2 weights: for even and odd rows of the result, each for even and odd columns.
    """
    batch, _, height, width = x.shape
    numbers = rounded(x.permute(0, 2, 3, 1), height * width)
    size = batch, phases[0].outputs, 2 * height, 2 * width
    out = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
    for index, weight in enumerate(phases):
        down, right = divmod(index, 2)
        form = batch, height, width, height, width, 2, 1, down - 1, right - 1, 2, down, right
        _multiply(numbers, weight, None, out, form, height * width)
    return out


def _multiply(
    x: Rounded, weight: EightBits, added: Tensor | None, out: Tensor, size: tuple[int, ...], each: int
) -> None:
    settings = out.dtype == torch.bfloat16, torch.get_num_threads()
    form = _Product(*size, x.numbers.shape[1], weight.outputs, each, *settings)
    parts = x.numbers, x.scales, x.zeros, weight.panels, weight.scales, weight.columns, weight.bias, added, out
    if kernel("multiply_bytes")(*(None if t is None else address(t) for t in parts), ctypes.byref(form)):
        raise MemoryError("8 bits: no memory for a thread's scratch space")
