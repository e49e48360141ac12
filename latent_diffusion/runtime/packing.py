"""Layers whose weights lie in the order the CPU multiplies them in: packed once, in place, and unpacked bit for bit.

Torch hands float32 matrix products to MKL and reorders the weights of every convolution at each call. oneDNN, which is
in every torch for CPUs, takes weights reordered before; on processors that MKL does not favour that is more than twice
as fast. A packed layer keeps its place, class, bias and state-dict keys; only `weight` is no parameter any more but a
copy made when it is asked for, so the weights lie in memory once. For 3x3 convolutions in float32 there is a way with
fewer multiplications (`native.winograd`), which needs weights of its own beside them.

Reference: oneDNN, "Memory format propagation", https://uxlfoundation.github.io/oneDNN/page_memory_format_propagation_cpp.html
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from latent_diffusion.nn.resnet import Upsample
from latent_diffusion.nn.shared_copy import shared_copy
from latent_diffusion.runtime.native import winograd
from latent_diffusion.runtime.self_timing import Trial, Ways, wins

__all__ = [
    "DoublingConv2d",
    "PackedConv2d",
    "PackedLinear",
    "PackedPointwise",
    "PackedUpsample",
    "PhasesConv2d",
    "WinogradConv2d",
    "bfloat16_pays",
    "pack",
    "unpack",
]

ROWS = 512  # rows of a linear layer's input, and
IMAGE = (2, 16, 16)  # size (B, H, W) of a convolution's, that the packed order is chosen for; others run as fast
WIDEST = 640  # outputs, and
MOST = 1280 * WIDEST  # pairs of channels of a layer that gets `winograd` weights beside its own: larger ones are for
# small maps, where 1.8 times their memory buys little. For a U-Net of Stable Diffusion 1.5 all together are 0.48 GB
SAME = ((1, 1), (1, 1), (1, 1), 1)  # padding, stride, dilation and groups of most convolutions
PHASES_PAY = 0.8  # of the time of doubling and a 3x3 convolution; it is about 0.5
HALF_PAYS = 0.75  # of the time in float32; where the processor has bfloat16 it is about 0.5, where not above 1


class _CopiedPlain(nn.Module):
    """What is copied or pickled is the plain layer: packed bytes are for this process."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        plain = shared_copy(self)
        unpack(plain)
        return _restored, (type(plain), vars(plain))


class _Packed(_CopiedPlain):
    """What the packed layers share: the weight as it was, whenever someone asks."""

    packed: Tensor  # opaque: oneDNN's own order of bytes
    bias: nn.Parameter | None

    @property
    def weight(self) -> nn.Parameter:
        """The weight as it was before, bit for bit: a new tensor at each call."""
        return nn.Parameter(self.packed.to_dense(), requires_grad=False)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.weight if keep_vars else self.weight.data
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        unpack(self)
        self._load_from_state_dict(*args, **kwargs)  # of the plain class, which it has now

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> nn.Module:
        unpack(self)  # another device or number format
        return self._apply(fn, recurse)


class PackedLinear(_Packed, nn.Linear):
    """x W^T + b."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        if torch.is_grad_enabled() and input.requires_grad:  # packed products have no gradient
            return F.linear(input, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], "")


class PackedConv2d(_Packed, nn.Conv2d):
    """Convolution; the result is channels_last."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H', W')."""
        if torch.is_grad_enabled() and input.requires_grad:
            return self._conv_forward(input, self.weight, self.bias)
        return torch.ops.mkldnn._convolution_pointwise(
            input, self.packed, self.bias, self.padding, self.stride, self.dilation, self.groups, "none", [], ""
        )


class PackedPointwise(_Packed, nn.Conv2d):
    """A 1x1 convolution as the linear layer over pixels that it is; as convolutions oneDNN has slow sizes."""

    @property
    def weight(self) -> nn.Parameter:
        """The weight (out_channels, in_channels, 1, 1) as it was before, bit for bit: a new tensor at each call."""
        return nn.Parameter(self.packed.to_dense()[:, :, None, None], requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        if torch.is_grad_enabled() and input.requires_grad:
            return self._conv_forward(input, self.weight, self.bias)
        pixels = input.permute(0, 2, 3, 1)  # contiguous where the input is channels_last
        out = torch.ops.mkldnn._linear_pointwise(pixels, self.packed, self.bias, "none", [], "")
        return out.permute(0, 3, 1, 2)


class WinogradConv2d(PackedConv2d):
    """A 3x3 convolution with fewer multiplications, whose weights for that are made at the first call."""

    doubled = False

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        return self.multiplied(input) if self.takes(input) else super().forward(input)

    def takes(self, input: Tensor) -> bool:
        """Whether the kernel can compute for `input`."""
        fits = input.dim() == 4 and input.shape[1] == self.in_channels and input.numel() > 0
        gradient = torch.is_grad_enabled() and input.requires_grad
        return fits and input.dtype == self.packed.dtype and input.device.type == "cpu" and not gradient

    def multiplied(self, input: Tensor) -> Tensor:
        """Return what the kernel makes of `input`."""
        panels = vars(self).get("panels")  # once read it cannot be taken away by another thread that unpacks a copy
        if panels is None:  # threads that come here together make the same
            panels = self.panels = winograd.panels(self.weight, doubled=self.doubled)
        return winograd.convolve(input, panels, self.bias, self.out_channels, doubled=self.doubled)


class DoublingConv2d(WinogradConv2d):
    """The convolution of a `PackedUpsample`, which has `multiplied` double the map as well."""

    doubled = True

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W), without doubling."""
        return PackedConv2d.forward(self, input)


class PhasesConv2d(DoublingConv2d):
    """The same with oneDNN, in any number format: four convolutions of the map as it was.

    A pixel of the doubled map sees 2x2 different pixels, by whether its row and column are even: each of the four
    cases is a 2x2 convolution, whose weights are sums of the 3x3 ones. 16 multiplications in place of 36.
    """

    def multiplied(self, input: Tensor) -> Tensor:
        """Return the convolution of the doubled `input`."""
        phases = vars(self).get("panels")
        if phases is None:
            phases = self.panels = [_reordered_weight(part, self.in_channels) for part in phase_weights(self.weight)]
        batch, _, height, width = input.shape
        out = input.new_empty(batch, 2 * height, 2 * width, self.out_channels).permute(0, 3, 1, 2)
        for index, phase in enumerate(phases):
            row, column = divmod(index, 2)
            made = torch.ops.mkldnn._convolution_pointwise(input, phase, self.bias, *SAME, "none", [], "")
            out[:, :, row::2, column::2] = made[:, :, row : row + height, column : column + width]
        return out


class PackedUpsample(_CopiedPlain, Upsample):
    """Doubling and convolution in one, where the kernel can and the size doubles."""

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Map (B, C, h, w) to (B, C, 2 h, 2 w), or to `size`."""
        doubles = size is None or tuple(size) == (2 * x.shape[2], 2 * x.shape[3])
        if doubles and isinstance(self.conv, DoublingConv2d) and self.conv.takes(x):
            return self.conv.multiplied(x)
        return super().forward(x, size)


PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    PackedLinear: nn.Linear,
    PackedUpsample: Upsample,
    **dict.fromkeys((PackedConv2d, PackedPointwise, WinogradConv2d, DoublingConv2d, PhasesConv2d), nn.Conv2d),
}


def pack(module: nn.Module) -> None:
    """Pack the linear layers and convolutions of `module` on a CPU, in place, where that is right and no slower.

    Layers that are packed already stay as they are. Nothing else may compute with `module` meanwhile.
    """
    doubling = {layer.conv for layer in module.modules() if isinstance(layer, Upsample)}
    for layer in module.modules():
        if type(layer) is Upsample:
            layer.__class__ = PackedUpsample
        elif type(layer) is nn.Linear and _packable(layer) and linear_packs(layer.weight.dtype):
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
            _become(layer, PackedLinear, packed)
        elif type(layer) is nn.Conv2d and _packable(layer) and _plain(layer) and conv_packs(layer.weight.dtype):
            if layer.kernel_size == layer.stride == (1, 1):
                packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().flatten(1), ROWS)
                _become(layer, PackedPointwise, packed)
            else:
                _become(layer, _kind(layer, layer in doubling), _reordered(layer))


def unpack(module: nn.Module) -> None:
    """Give every packed layer in `module` its weight and class back, in place."""
    for layer in module.modules():
        kind = PLAIN.get(type(layer))
        if kind is Upsample:
            layer.__class__ = kind
        elif kind is not None:
            weight = layer.weight
            del layer.packed
            vars(layer).pop("panels", None)
            layer.__class__ = kind
            bias = layer._parameters.pop("bias")  # keeps the order of the keys
            layer.weight = weight
            layer.register_parameter("bias", bias)


def _restored(kind: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    layer = kind.__new__(kind)
    vars(layer).update(state)
    return layer


def _become(layer: nn.Module, kind: type[_Packed], packed: Tensor) -> None:
    del layer.weight
    layer.__class__ = kind
    layer.packed = packed


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


def _reordered(layer: nn.Conv2d) -> Tensor:
    form = (layer.padding, layer.stride, layer.dilation, layer.groups)
    return _reordered_weight(layer.weight.detach(), layer.in_channels, form)


def _reordered_weight(weight: Tensor, inputs: int, form: tuple[Any, ...] = SAME) -> Tensor:
    batch, height, width = IMAGE
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *form, [batch, inputs, height, width])


def phase_weights(weight: Tensor) -> list[Tensor]:
    """Return the 2x2 weights of a 3x3 convolution after doubling, for even and odd rows, each for even and odd columns.

    Sums of `weight` (O, I, 3, 3) are formed in float32 and rounded once to its dtype.
    """

    def halves(w: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        first, middle, last = w.unbind(dim)
        return torch.stack((first, middle + last), dim), torch.stack((first + middle, last), dim)

    rows = halves(weight.detach().float(), 2)
    return [columns.to(weight.dtype) for part in rows for columns in halves(part, 3)]


def linear_packs(dtype: torch.dtype) -> bool:
    """Whether packed linear layers in `dtype` are right here, and no slower than plain ones."""
    return wins(Trial("linear", dtype), _packed_and_plain_linear)


def conv_packs(dtype: torch.dtype) -> bool:
    """Whether packed convolutions in `dtype` are right here, and no slower than plain ones."""
    return wins(Trial("convolution", dtype), _packed_and_plain_conv)


def phases_pay(dtype: torch.dtype) -> bool:
    """Whether four 2x2 convolutions in `dtype` clearly beat doubling and one of 3x3."""
    return wins(Trial("phases", dtype), _phases_and_doubled, PHASES_PAY)


def bfloat16_pays() -> bool:
    """Whether packed products in bfloat16 take clearly less time than in float32 on this CPU."""
    return linear_packs(torch.bfloat16) and wins(Trial("half precision", torch.bfloat16), _half_and_full, HALF_PAYS)


def _half_and_full(dtype: torch.dtype) -> Ways:
    return tuple(_packed_and_plain_linear(d)[0] for d in (dtype, torch.float32))


def _packed_and_plain_linear(dtype: torch.dtype) -> Ways:
    x = _drawn(ROWS, 320, dtype=dtype)
    weight, bias = _drawn(640, 320, dtype=dtype), _drawn(640, dtype=dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    return (
        lambda: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], ""),
        lambda: F.linear(x, weight, bias),
    )


def _packed_and_plain_conv(dtype: torch.dtype) -> Ways:
    x, layer = _map_and_convolution(dtype)
    packed = _reordered(layer)
    return (
        lambda: torch.ops.mkldnn._convolution_pointwise(x, packed, layer.bias, *SAME, "none", [], ""),
        lambda: F.conv2d(x, layer.weight, layer.bias, padding=1),
    )


def _phases_and_doubled(dtype: torch.dtype) -> Ways:
    x, layer = _map_and_convolution(dtype)
    plain = Upsample.__new__(Upsample)
    nn.Module.__init__(plain)
    plain.conv = layer
    packed = shared_copy(plain)
    _become(packed.conv, PhasesConv2d, _reordered(packed.conv))
    return lambda: packed.conv.multiplied(x), lambda: plain(x)


def _map_and_convolution(dtype: torch.dtype) -> tuple[Tensor, nn.Conv2d]:
    """Return a map and a layer to try, without touching the random state of the process."""
    batch, height, width = IMAGE
    x = _drawn(batch, 128, height, width, dtype=dtype).contiguous(memory_format=torch.channels_last)
    layer = skip_init(nn.Conv2d, 128, 128, 3, padding=1, dtype=dtype).requires_grad_(False)
    layer.weight.copy_(_drawn(128, 128, 3, 3, dtype=dtype))
    layer.bias.copy_(_drawn(128, dtype=dtype))
    return x, layer


def _drawn(*size: int, dtype: torch.dtype) -> Tensor:
    """Return normal numbers, without touching the random state of the process."""
    return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)
