"""Packs the weights of linear layers and convolutions for the CPU, in place, where a short timing trial shows a gain.

Torch hands float32 matrix products to MKL and reorders the weights of every convolution at each call. oneDNN, which is
in every torch for CPUs, takes weights reordered before; on processors that MKL does not favour that is more than twice
as fast. 3x3 convolutions in float32 take fewer multiplications still (`native.winograd`), with weights of their own
beside the packed ones; norms and SiLUs of residual blocks are one pass (`native.group_norm`), and so is
the gate of the feed-forward layers (`native.gated`).

Reference: oneDNN, "Memory format propagation", https://uxlfoundation.github.io/oneDNN/page_memory_format_propagation_cpp.html
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_diffusion.nn.reread import Read, reader_of
from latent_diffusion.nn.resnet import ResnetBlock, Upsample
from latent_diffusion.nn.shared_copy import shared_copy
from latent_diffusion.nn.transformer import GatedLinear
from latent_diffusion.runtime.cpu.native import gated, group_norm, winograd
from latent_diffusion.runtime.cpu.packed_layers import (
    IMAGE,
    SAME,
    DoublingConv2d,
    NormedResnetBlock,
    OncePassedGate,
    PackedConv2d,
    PackedLinear,
    PackedPointwise,
    PackedUpsample,
    PhasesConv2d,
    WinogradConv2d,
    become,
    reordered_weight,
    unpack,
)
from latent_diffusion.runtime.cpu.reordered import Reordered
from latent_diffusion.runtime.cpu.self_timing import Trial, Ways, wins

__all__ = ["bfloat16_pays", "pack", "reorders", "unpack"]

ROWS = 512  # rows of the input that the packed order of a linear layer is chosen for; others run as fast
WIDEST = 640  # outputs, and
MOST = 1280 * WIDEST  # pairs of channels of a layer that gets `winograd` weights beside its own: larger ones are for
# small maps, where 1.8 times their memory buys little. For a U-Net of Stable Diffusion 1.5 all together are 0.48 GB
PHASES_PAY = 0.8  # of the time of doubling and a 3x3 convolution; it is about 0.5
HALF_PAYS = 0.75  # of the time in float32; where the processor has bfloat16 it is about 0.5, where not above 1


def pack(module: nn.Module) -> None:
    """Pack the linear layers and convolutions of `module` on a CPU, in place, where that is right and no slower.

    Weights change their order with their use, see `Reordered`. Layers that are packed already stay as they
    are. Nothing else may compute with `module` meanwhile.
    """
    doubling = {layer.conv for layer in module.modules() if isinstance(layer, Upsample)}
    for layer in module.modules():
        if type(layer) is Upsample:
            layer.__class__ = PackedUpsample
        elif type(layer) is ResnetBlock and group_norm.pays(layer.norm1.weight.dtype):
            layer.__class__ = NormedResnetBlock
        elif type(layer) is GatedLinear and gated.pays(layer.proj.bias.dtype):
            layer.__class__ = OncePassedGate
        elif type(layer) is nn.Linear and _packable(layer) and linear_packs(layer.weight.dtype):
            become(layer, PackedLinear, _linear(layer.weight, reader_of(layer.weight)))
        elif type(layer) is nn.Conv2d and _packable(layer) and _plain(layer) and conv_packs(layer.weight.dtype):
            if layer.kernel_size == layer.stride == (1, 1) and layer.padding == (0, 0):
                become(layer, PackedPointwise, _linear(layer.weight.flatten(1), _flat(reader_of(layer.weight))))
            else:
                become(layer, _kind(layer, layer in doubling), _reordered(layer))


def _kind(layer: nn.Conv2d, doubling: bool) -> type[PackedConv2d]:
    inputs, outputs, one = layer.in_channels, layer.out_channels, (1, 1)
    square = layer.kernel_size == (3, 3) and layer.stride == layer.padding == layer.dilation == one
    in_c = layer.weight.dtype == torch.float32 and winograd.divides(inputs, outputs)
    if square and doubling:
        if in_c and winograd.pays(doubled=True):
            return DoublingConv2d
        return PhasesConv2d if phases_pay(layer.weight.dtype) else PackedConv2d
    if not (square and in_c):
        return PackedConv2d
    small = outputs <= WIDEST and inputs * outputs <= MOST
    return WinogradConv2d if small and winograd.pays(doubled=False) else PackedConv2d


def _packable(layer: nn.Linear | nn.Conv2d) -> bool:
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)


def _plain(layer: nn.Conv2d) -> bool:
    return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _linear(weight: Tensor, read: Read | None) -> Reordered:
    return Reordered(weight, _reordered_linear, either=_same_in_either_order(weight.dtype), read=read)


def _flat(read: Read | None) -> Read | None:
    return None if read is None else lambda: read().flatten(1)


def _reordered_linear(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)


@functools.cache
def _same_in_either_order(dtype: torch.dtype) -> bool:
    """Whether oneDNN's products have the same bits here whatever order the weight of a linear layer comes in."""
    weight, multiply = _drawn(640, 320, dtype=dtype), torch.ops.mkldnn._linear_pointwise
    orders = weight, _reordered_linear(weight)
    inputs = [_drawn(rows, 320, dtype=dtype) for rows in (1, 2, 33, 128)]
    return all(torch.equal(*(multiply(x, order, None, "none", [], "") for order in orders)) for x in inputs)


def _reordered(layer: nn.Conv2d) -> Reordered:
    form = (layer.padding, layer.stride, layer.dilation, layer.groups)
    reorder = functools.partial(reordered_weight, inputs=layer.in_channels, form=form)
    return Reordered(layer.weight, reorder, read=reader_of(layer.weight))


def reorders(dtype: torch.dtype) -> bool:
    """Whether torch can reorder weights in `dtype`, float32 or bfloat16, on this processor.

    For bfloat16 torch asks for the instructions avx512bw, avx512vl and avx512dq, or avx_ne_convert; it raises without.
    """
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def linear_packs(dtype: torch.dtype) -> bool:
    """Whether packed linear layers in `dtype` are right here, and no slower than plain ones."""
    return reorders(dtype) and wins(Trial("linear", dtype), _packed_and_plain_linear)


def conv_packs(dtype: torch.dtype) -> bool:
    """Whether packed convolutions in `dtype` are right here, and no slower than plain ones."""
    return reorders(dtype) and wins(Trial("convolution", dtype), _packed_and_plain_conv)


def phases_pay(dtype: torch.dtype) -> bool:
    """Whether four 2x2 convolutions in `dtype` clearly beat doubling and one of 3x3."""
    return reorders(dtype) and wins(Trial("phases", dtype), _phases_and_doubled, PHASES_PAY)


def bfloat16_pays() -> bool:
    """Whether packed products in bfloat16 take clearly less time than in float32 on this CPU."""
    return linear_packs(torch.bfloat16) and wins(Trial("half precision", torch.bfloat16), _half_and_full, HALF_PAYS)


def _half_and_full(dtype: torch.dtype) -> Ways:
    return _packed_and_plain_linear(dtype)[0], _packed_and_plain_linear(torch.float32)[0]


def _packed_and_plain_linear(dtype: torch.dtype) -> Ways:
    x = _drawn(ROWS, 320, dtype=dtype)
    weight, bias = _drawn(640, 320, dtype=dtype), _drawn(640, dtype=dtype)
    packed = _reordered_linear(weight)
    return (
        lambda: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], ""),
        lambda: F.linear(x, weight, bias),
    )


def _packed_and_plain_conv(dtype: torch.dtype) -> Ways:
    x, layer = _map_and_convolution(dtype)
    packed = reordered_weight(layer.weight, layer.in_channels)
    return (
        lambda: torch.ops.mkldnn._convolution_pointwise(x, packed, layer.bias, *SAME, "none", [], ""),
        lambda: F.conv2d(x, layer.weight, layer.bias, padding=1),
    )


def _phases_and_doubled(dtype: torch.dtype) -> Ways:
    """Return both ways for a map of the size of those that are doubled: with AMX they gain nothing on smaller ones."""
    x, layer = _map_and_convolution(dtype, 320, (1, 32, 32))
    plain = Upsample.__new__(Upsample)
    nn.Module.__init__(plain)
    plain.conv = layer
    twin = shared_copy(layer)
    become(twin, PhasesConv2d, _reordered(twin))
    assert isinstance(twin, PhasesConv2d)
    return lambda: twin.multiplied(x), lambda: plain.forward(x)


def _map_and_convolution(
    dtype: torch.dtype, channels: int = 128, image: tuple[int, int, int] = IMAGE
) -> tuple[Tensor, nn.Conv2d]:
    """Return a map and a layer to try, without touching the random state of the process."""
    batch, height, width = image
    x = _drawn(batch, channels, height, width, dtype=dtype).contiguous(memory_format=torch.channels_last)
    # `to_empty` would import sympy (0.3 s)
    layer = nn.Conv2d(channels, channels, 3, padding=1, device="meta", dtype=dtype)
    state = {name: _drawn(*weight.shape, dtype=dtype) for name, weight in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)
    return x, layer.requires_grad_(False)


def _drawn(*size: int, dtype: torch.dtype) -> Tensor:
    """Return normal numbers, without touching the random state of the process."""
    return torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(dtype)
