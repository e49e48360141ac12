"""Layers whose weights lie in the order the CPU multiplies them in, and their way back, bit for bit.

A packed layer keeps its place, bias and state-dict keys; only `weight` is no parameter any more but a copy made when it
is asked for, so the weights lie in memory once (`reordered`). Other modules only get another way to compute.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_diffusion.nn.resnet import ResnetBlock, Upsample
from latent_diffusion.nn.shared_copy import shared_copy
from latent_diffusion.nn.transformer import GatedLinear
from latent_diffusion.runtime.cpu.native import gated, group_norm, winograd
from latent_diffusion.runtime.cpu.reordered import Reordered

__all__ = [
    "IMAGE",
    "SAME",
    "AddingConv2d",
    "DoublingConv2d",
    "NormedResnetBlock",
    "OncePassedGate",
    "PackedConv2d",
    "PackedLinear",
    "PackedPointwise",
    "PackedUpsample",
    "PhasesConv2d",
    "WinogradConv2d",
    "become",
    "phase_weights",
    "reordered_weight",
    "unpack",
    "unpacked_copy",
]

M = TypeVar("M", bound=nn.Module)

IMAGE = (2, 16, 16)  # size (B, H, W) that the packed order of a convolution is chosen for; others run as fast
SAME = ((1, 1), (1, 1), (1, 1), 1)  # padding, stride, dilation and groups of most convolutions
SMALLEST = 16 * 16  # pixels of a map from which a second set of weights is made, which for large layers
FEW = 256 * 256  # (more pairs of channels than these) takes memory: 0.7 GB for U-Net and autoencoder of SD 1.5


class _CopiedPlain(nn.Module):
    """What is copied or pickled is the plain layer: packed bytes are for this process. And plain layers train."""

    def train(self, mode: bool = True) -> nn.Module:
        """Set training mode, in which the layer is plain."""
        if not mode:
            return super().train(mode)
        unpack(self)
        return self.train(mode)  # of the plain class, which it has now

    def __reduce_ex__(self, protocol: Any) -> Any:
        plain = unpacked_copy(self)
        return _restored, (type(plain), vars(plain))


class _Packed(_CopiedPlain):
    """Base of the packed layers: it gives the plain weight on demand."""

    packed: Reordered
    bias: nn.Parameter | None

    @property
    def weight(self) -> nn.Parameter:
        """The weight as it was before, bit for bit: a new tensor at each call."""
        return nn.Parameter(self.packed.copy(), requires_grad=False)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.weight if keep_vars else self.weight.data
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        unpack(self)
        self._load_from_state_dict(*args, **kwargs)  # of the plain class, which it has now

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> nn.Module:
        unpack(self)  # another device or number format
        return self._apply(fn, recurse)


def _needs_gradient(input: Tensor) -> bool:
    """Whether a layer must compute as the plain one does: packed products have no gradient."""
    return torch.is_grad_enabled() and input.requires_grad


class PackedLinear(_Packed, nn.Linear):
    """x W^T + b."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        if _needs_gradient(input):
            return F.linear(input, self.weight, self.bias)
        weight = self.packed.used(input.shape[:-1].numel())
        return torch.ops.mkldnn._linear_pointwise(input, weight, self.bias, "none", [], "")


class PackedConv2d(_Packed, nn.Conv2d):
    """Convolution; the result is channels_last."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H', W')."""
        if _needs_gradient(input):
            return self._conv_forward(input, self.weight, self.bias)
        if input.shape[2:] == (1, 1) and self.kernel_size == (3, 3) and self.padding == self.dilation == (1, 1):
            one = torch.ops.mkldnn._linear_pointwise(input.flatten(1), self.packed.middle(), self.bias, "none", [], "")
            return one[:, :, None, None]
        height, width = input.shape[-2:]
        weight = self.packed.used(len(input) * height * width, (IMAGE[0], height, width))
        return torch.ops.mkldnn._convolution_pointwise(
            input, weight, self.bias, self.padding, self.stride, self.dilation, self.groups, "none", [], ""
        )


class PackedPointwise(_Packed, nn.Conv2d):
    """A 1x1 convolution as the linear layer over pixels that it is; as convolutions oneDNN has slow sizes."""

    @property
    def weight(self) -> nn.Parameter:
        """The weight (out_channels, in_channels, 1, 1) as it was before, bit for bit: a new tensor at each call."""
        return nn.Parameter(self.packed.copy()[:, :, None, None], requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        if _needs_gradient(input):
            return self._conv_forward(input, self.weight, self.bias)
        pixels = input.permute(0, 2, 3, 1)  # contiguous where the input is channels_last
        weight = self.packed.used(pixels.shape[:-1].numel())
        out = torch.ops.mkldnn._linear_pointwise(pixels, weight, self.bias, "none", [], "")
        return out.permute(0, 3, 1, 2)


class AddingConv2d(nn.Conv2d):
    """A convolution that can add a map of the size of its result where it writes it."""

    def takes(self, input: Tensor) -> bool:
        """Whether `multiplied` can compute for `input`."""
        raise NotImplementedError

    def multiplied(self, input: Tensor, added: Tensor | None = None) -> Tensor:
        """Return the convolution of `input`, plus `added`."""
        raise NotImplementedError


class WinogradConv2d(PackedConv2d, AddingConv2d):
    """A 3x3 convolution with fewer multiplications, whose weights for that are made at the first call."""

    doubled = False

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        return self.multiplied(input) if self.takes(input) else super().forward(input)

    def takes(self, input: Tensor) -> bool:
        """Whether the kernel can compute for `input`, and its second set of weights is worth making for it."""
        fits = input.dim() == 4 and input.shape[1] == self.in_channels and input.numel() > 0
        worth = input.shape[-2] * input.shape[-1] >= SMALLEST or self.in_channels * self.out_channels <= FEW
        here = input.dtype == self.packed.dtype and input.device.type == "cpu"
        return fits and worth and here and not _needs_gradient(input)

    def multiplied(self, input: Tensor, added: Tensor | None = None) -> Tensor:
        """Return what the kernel makes of `input`, plus `added`, a map as the result."""
        panels = vars(self).get("panels")  # once read it cannot be taken away by another thread that unpacks a copy
        if panels is None:  # threads that come here together make the same
            panels = self.panels = winograd.panels(self.packed.plain(), doubled=self.doubled)
        return winograd.convolve(input, panels, self.bias, self.out_channels, added, doubled=self.doubled)


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

    def multiplied(self, input: Tensor, added: Tensor | None = None) -> Tensor:
        """Return the convolution of the doubled `input`, plus `added`."""
        phases = vars(self).get("panels")
        if phases is None:
            parts = phase_weights(self.packed.plain())
            phases = self.panels = [reordered_weight(part, self.in_channels) for part in parts]
        batch, _, height, width = input.shape
        out = input.new_empty(batch, 2 * height, 2 * width, self.out_channels).permute(0, 3, 1, 2)
        for index, phase in enumerate(phases):
            row, column = divmod(index, 2)
            made = torch.ops.mkldnn._convolution_pointwise(input, phase, self.bias, *SAME, "none", [], "")
            out[:, :, row::2, column::2] = made[:, :, row : row + height, column : column + width]
        return out if added is None else out + added


class PackedUpsample(_CopiedPlain, Upsample):
    """Doubling and convolution in one, where the kernel can and the size doubles."""

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Map (B, C, h, w) to (B, C, 2 h, 2 w), or to `size`."""
        doubles = size is None or tuple(size) == (2 * x.shape[2], 2 * x.shape[3])
        if doubles and isinstance(self.conv, DoublingConv2d) and self.conv.takes(x):
            return self.conv.multiplied(x)
        return super().forward(x, size)


class NormedResnetBlock(_CopiedPlain, ResnetBlock):
    """Residual block whose norms and SiLUs are one pass each; noise level and input are added where a map is read."""

    def _forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() or not (group_norm.takes(x) and self.conv1.out_channels % group_norm.LANES == 0):
            return super()._forward(x, time)
        level = None if self.time_emb_proj is None else self.time_emb_proj(time)  # (B, out_channels)
        hidden = self.conv1(group_norm.norm_silu(x, self.norm1))
        hidden = group_norm.norm_silu(hidden, self.norm2, level)
        kept = x if self.conv_shortcut is None else self.conv_shortcut(x)
        if isinstance(self.conv2, AddingConv2d) and self.conv2.takes(hidden):
            return self.conv2.multiplied(hidden, kept)
        return self.conv2(hidden) + kept


class OncePassedGate(_CopiedPlain, GatedLinear):
    """Gated linear layer whose gate is one pass over memory, where torch has two."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, width) to (B, L, hidden)."""
        x = self.proj(x)
        return self.kernel(x) if torch.is_grad_enabled() or not gated.takes(x) else gated.drawn(x)


PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    PackedLinear: nn.Linear,
    PackedUpsample: Upsample,
    NormedResnetBlock: ResnetBlock,
    OncePassedGate: GatedLinear,
    **dict.fromkeys((PackedConv2d, PackedPointwise, WinogradConv2d, DoublingConv2d, PhasesConv2d), nn.Conv2d),
}


def unpack(module: nn.Module) -> None:
    """Give every packed layer in `module` its weight and class back, in place."""
    for layer in module.modules():
        kind = PLAIN.get(type(layer))
        if kind in (Upsample, ResnetBlock, GatedLinear):
            layer.__class__ = kind  # these have no weights of their own
        elif kind is not None:
            weight = layer.weight
            del layer.packed
            vars(layer).pop("panels", None)
            layer.__class__ = kind
            bias = layer._parameters.pop("bias")  # keeps the order of the keys
            layer.weight = weight
            layer.register_parameter("bias", bias)


def unpacked_copy(module: M) -> M:
    """Return a copy of `module` whose layers are plain; `module` stays as it is, and shares all other weights."""
    twin = shared_copy(module)
    unpack(twin)
    return twin


def _restored(kind: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    layer = kind.__new__(kind)
    vars(layer).update(state)
    return layer


def become(layer: nn.Module, kind: type[_Packed], packed: Reordered) -> None:
    """Give `layer` a packed class, and its packed weight in place of its own."""
    del layer.weight
    layer.__class__ = kind
    vars(layer)["packed"] = packed


def reordered_weight(
    weight: Tensor, inputs: int, form: tuple[Any, ...] = SAME, image: tuple[int, int, int] = IMAGE
) -> Tensor:
    """Return a convolution's weight in oneDNN's order; `form` is padding, stride, dilation and groups."""
    batch, height, width = image
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
