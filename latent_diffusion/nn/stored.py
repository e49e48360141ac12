"""Frozen layers whose weights lie in fewer bits, or in another place, and are made whole each time they compute.

For the weight w of an output channel:

    float32    as it is, for weights that lie on the host
    bfloat16   rounded to 8 bits of mantissa
    float8     w / s rounded to e4m3, s = max |w| / 448
    int8       w / s rounded to whole numbers, s = max |w| / 127
    nf4        the nearest of 16 quantiles of a normal law, times the largest |w| of 64 weights in a row

A layer y = W x + b hands on dx = W^T dy. Both products make W anew from what is stored, so that no whole weight
outlives them; x is not kept either.
Reference: Dettmers et al. 2023, arXiv:2305.14314, section 3 (NF4, and gradients through a dequantised weight).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

__all__ = ["FORMATS", "Pieces", "StoredConv2d", "StoredLayer", "StoredLinear", "store"]

Pieces = Mapping[str, Tensor]


@dataclass(frozen=True)
class Format:
    """How a weight is kept.

    Attributes:
        pack: weight (O, ...) -> the tensors that are kept.
        unpack: these, the shape and the dtype -> the weight.
        size: bytes of a weight; scales of an output channel are next to nothing and not counted.
    """

    pack: Callable[[Tensor], Pieces]
    unpack: Callable[[Pieces, torch.Size, torch.dtype], Tensor]
    size: float


TINY = torch.finfo(torch.float32).tiny  # the scale of weights that are all 0


def _cast(to: torch.dtype) -> Format:
    return Format(
        pack=lambda weight: {"bits": weight.to(to)},
        unpack=lambda pieces, shape, dtype: pieces["bits"].to(dtype),
        size=to.itemsize,
    )


def _scaled(to: torch.dtype, largest: float) -> Format:
    """Return a format with one scale for each output channel, which maps its largest weight to `largest`."""

    def pack(weight: Tensor) -> Pieces:
        lengths = weight.flatten(1).float().abs().amax(1).clamp_min(TINY)
        scale = (lengths / largest).view(-1, *[1] * (weight.ndim - 1))
        exact = weight.float() / scale
        return {"bits": (exact if to.is_floating_point else exact.round()).to(to), "scale": scale}

    def unpack(pieces: Pieces, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return (pieces["bits"].to(torch.float32) * pieces["scale"]).to(dtype)

    return Format(pack, unpack, to.itemsize)


NF4_BLOCK = 64  # weights that share a scale
NF4 = torch.tensor(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
)  # fmt: skip
"""The 16 values of NF4 (appendix E of the paper)."""


def _pack_nf4(weight: Tensor) -> Pieces:
    """Return two weights a byte, the first in the high half, and the largest of every 64."""
    blocks = F.pad(weight.float().flatten(), (0, -weight.numel() % NF4_BLOCK)).view(-1, NF4_BLOCK)
    scale = blocks.abs().amax(1, keepdim=True)
    middles = ((NF4[1:] + NF4[:-1]) / 2).to(weight.device)
    nearest = torch.bucketize(blocks / scale.clamp_min(TINY), middles)
    high, low = nearest.to(torch.uint8).view(-1, 2).unbind(1)
    return {"bits": high * 16 + low, "scale": scale}


def _unpack_nf4(pieces: Pieces, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    halves = torch.stack([pieces["bits"] // 16, pieces["bits"] % 16], dim=1)
    values = NF4.to(halves.device).index_select(0, halves.flatten().int()).view(-1, NF4_BLOCK) * pieces["scale"]
    return values.flatten()[: shape.numel()].view(shape).to(dtype)


FORMATS: Mapping[str, Format] = {
    "float32": _cast(torch.float32),
    "bfloat16": _cast(torch.bfloat16),
    "float8": _scaled(torch.float8_e4m3fn, 448.0),
    "int8": _scaled(torch.int8, 127.0),
    "nf4": Format(_pack_nf4, _unpack_nf4, 0.5 + 4 / NF4_BLOCK),
}
"""Formats by the names that settings have."""


class StoredLayer(nn.Module):
    """A frozen layer without a weight of its own: what is kept of it, and how to make it whole."""

    stored: Pieces
    form: str
    shape: torch.Size
    bias: nn.Parameter | None

    @property
    def weight(self) -> Tensor:
        """The whole weight in float32, made anew."""
        place = self.stored["bits"] if self.bias is None else self.bias
        return self.whole(place.device, torch.float32)

    def whole(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return the weight on `device` in `dtype`."""
        pieces = {name: piece.to(device) for name, piece in self.stored.items()}
        return FORMATS[self.form].unpack(pieces, self.shape, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Return W x + b in autocast's dtype, or in that of the input."""
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        made = _Product.apply(input.to(dtype), self)
        assert isinstance(made, Tensor), "one result"
        return made

    def product(self, x: Tensor) -> Tensor:
        """Return W x + b in the dtype of `x`."""
        raise NotImplementedError

    def turned_back(self, gradient: Tensor, size: torch.Size) -> Tensor:
        """Return W^T dy of the shape `size` in the dtype of `gradient`."""
        raise NotImplementedError

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({f"{prefix}{name}": piece for name, piece in self.stored.items()})

    def _added(self, dtype: torch.dtype) -> Tensor | None:
        return None if self.bias is None else self.bias.to(dtype)


class StoredLinear(StoredLayer, nn.Linear):  # pyright: ignore[reportIncompatibleVariableOverride]
    """x W^T + b."""

    def product(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return F.linear(x, self.whole(x.device, x.dtype), self._added(x.dtype))

    def turned_back(self, gradient: Tensor, size: torch.Size) -> Tensor:
        """Map (..., out_features) to (..., in_features)."""
        return gradient @ self.whole(gradient.device, gradient.dtype)


class StoredConv2d(StoredLayer, nn.Conv2d):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Convolution."""

    def product(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H', W')."""
        return self._conv_forward(x, self.whole(x.device, x.dtype), self._added(x.dtype))

    def turned_back(self, gradient: Tensor, size: torch.Size) -> Tensor:
        """Map (B, out_channels, H', W') to `size`."""
        weight = self.whole(gradient.device, gradient.dtype)
        how: Any = self.stride, self.padding, self.dilation, self.groups
        return conv2d_input(size, weight, gradient, *how)


class _Product(torch.autograd.Function):
    """The layer's product, with the gradient of its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: StoredLayer) -> Tensor:
        ctx.layer, ctx.size = layer, x.shape
        return layer.product(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.layer.turned_back(gradient, ctx.size), None


def store(layers: Sequence[nn.Linear | nn.Conv2d], form: str, device: torch.device) -> None:
    """Keep the frozen weight that all of these plain layers share in the format `form` on `device`, in place."""
    weight = layers[0].weight
    stored = {name: piece.to(device) for name, piece in FORMATS[form].pack(weight.detach()).items()}
    for layer in layers:
        vars(layer).update(stored=stored, form=form, shape=weight.shape)
        del layer._parameters["weight"]
        kind: Any = StoredLinear if isinstance(layer, nn.Linear) else StoredConv2d
        layer.__class__ = kind
