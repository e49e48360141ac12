"""3x3 convolutions in C (winograd.c): a quarter to a half of the multiplications, in float32.

Twice as fast as oneDNN's packed convolutions, and four times where the map was doubled just before. Rounding errors are
those of the plain convolution: 2e-7 to 8e-7 of the result, relative to float64.

Lavin & Gray 2015, arXiv:1509.09308.
"""

import ctypes
import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_diffusion.runtime.cpu.native.library import address, find, kernel
from latent_diffusion.runtime.cpu.self_timing import Trial, Ways, wins

__all__ = ["convolve", "divides", "panels", "pays"]

LANES, PANEL = 16, 32  # the input's channels are a multiple of the first, the result's of the second


class _Convolution(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "inputs", "outputs")),
        ("doubled", ctypes.c_int),
        ("threads", ctypes.c_int),
    ]


def divides(inputs: int, outputs: int) -> bool:
    """Whether there is a kernel for these numbers of channels."""
    return inputs % LANES == 0 and outputs % PANEL == 0


def pays(*, doubled: bool) -> bool:
    """Whether the kernel is there, right, and no slower than oneDNN on this processor."""
    if find("winograd_convolve") is None:
        return False
    ways = functools.partial(_ours_and_packed, doubled=doubled)
    return wins(Trial("doubling" if doubled else "winograd", torch.float32), ways)


def panels(weight: Tensor, *, doubled: bool) -> Tensor:
    """Return the weights (outputs, inputs, 3, 3), float32, as `convolve` takes them: 1.8 times as many, or as many."""
    outputs, inputs = weight.shape[:2]
    made = weight.new_empty((9 if doubled else 16) * inputs * outputs)
    shape = _Convolution(0, 0, 0, inputs, outputs, doubled, torch.get_num_threads())
    weight = weight.detach().contiguous()
    kernel("winograd_weights")(address(weight), address(made), ctypes.byref(shape))
    return made


def convolve(
    x: Tensor, panels: Tensor, bias: Tensor | None, outputs: int, added: Tensor | None = None, *, doubled: bool
) -> Tensor:
    """Convolve `x` (B, inputs, H, W), float32, with 3x3 weights, stride 1 and zeros around, to (B, outputs, H, W).

    With `doubled` each pixel of `x` is repeated twice in both directions first: the result is (B, outputs, 2 H, 2 W).
    It is channels_last, and has no gradient. `added`, a map of its size, is added to it.

    Raises:
        ValueError: `added` has another size or number format.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    batch, inputs, height, width = x.shape
    size = (batch, outputs, 2 * height, 2 * width) if doubled else (batch, outputs, height, width)
    if added is not None:
        if added.shape != size or added.dtype != x.dtype:
            raise ValueError(f"convolution: {tuple(added.shape)} {added.dtype} is added to {size} {x.dtype}")
        added = added.contiguous(memory_format=torch.channels_last)
    out = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
    shape = _Convolution(batch, *size[2:], inputs, outputs, doubled, torch.get_num_threads())
    pointers = [None if t is None else address(t) for t in (x, panels, bias, added, out)]
    if kernel("winograd_convolve")(*pointers, ctypes.byref(shape)):
        raise MemoryError("convolution: no memory for a thread's scratch space")
    return out


def _ours_and_packed(dtype: torch.dtype, *, doubled: bool) -> Ways:
    generator = torch.Generator().manual_seed(0)
    sizes = (1, 128, 33, 31), (128, 128, 3, 3), (128,)  # enough work for the two to differ clearly
    x, weight, bias = (torch.randn(size, generator=generator, dtype=dtype) for size in sizes)
    x, form = x.contiguous(memory_format=torch.channels_last), ([1, 1], [1, 1], [1, 1], 1)
    ours = panels(weight, doubled=doubled)
    theirs = torch.ops.mkldnn._reorder_convolution_weight(weight, *form, list(x.shape))

    def plain() -> Tensor:
        wide = F.interpolate(x, scale_factor=2.0, mode="nearest") if doubled else x
        return torch.ops.mkldnn._convolution_pointwise(wide, theirs, bias, *form, "none", [], "")

    return lambda: convolve(x, ours, bias, 128, doubled=doubled), plain
