"""A U-Net whose layers compute with 8 bits: a second tree of modules over the same tensors, for as long as it is used.

Rounded are the layers that every token or pixel goes through: the 3x3 and 1x1 convolutions of residual blocks, the
projections of the transformers and their feed-forward layers; and what each residual block makes of the noise level.
Of the layers that make the prompt's keys and values only weights are rounded: single channels of a text tower's states
are often many times as large as all others, and would take the steps of a token for themselves. Exact stay the first
and the last convolution, the embedding of the noise level, and the norms.

Which layers stay exact was chosen by measuring each alone (`experiments/measure_int8.py`): in the bundled model the
outermost level's 1x1 convolutions beside residual blocks make .39 of the squared error.

A weight is rounded once, with its bias, and kept as long as its layer is there. Memory does not hold the exact one
beside it, until an exact network uses it again, where its file gives the same bits when it is read again. Weights that
are in no file, such as those an adapter changed, stay.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from latent_diffusion.models.unet import UNet
from latent_diffusion.nn.attention import Attention, KeysValues, join_heads, split_heads
from latent_diffusion.nn.resnet import Downsample, ResnetBlock, Upsample
from latent_diffusion.nn.shared_copy import shared_copy
from latent_diffusion.nn.transformer import SpatialTransformer, TransformerBlock
from latent_diffusion.runtime.cpu import packing, pages
from latent_diffusion.runtime.cpu.allocator import give_back_free
from latent_diffusion.runtime.cpu.native import eight_bits
from latent_diffusion.runtime.cpu.native.eight_bits import EightBits, Rounded
from latent_diffusion.runtime.cpu.packed_layers import (
    AddingConv2d,
    DoublingConv2d,
    PackedConv2d,
    PackedLinear,
    PackedPointwise,
    PhasesConv2d,
    WinogradConv2d,
    phase_weights,
)
from latent_diffusion.runtime.cpu.self_timing import Trial, Ways, wins

__all__ = ["in_eight_bits", "pays", "round_layer"]

LINEAR = (nn.Linear, PackedLinear)
DOUBLING = (nn.Conv2d, PackedConv2d, DoublingConv2d, PhasesConv2d)
CONVOLUTIONS = (nn.Conv2d, PackedConv2d, PackedPointwise, WinogradConv2d)

N = TypeVar("N", bound=UNet)

FASTER = 0.9  # of the exact way's time, at most
ERROR = 0.03  # relative, of products of random numbers; it is about 0.01

Eight = EightBits | tuple[EightBits, ...]

_made = WeakIdKeyDictionary()  # by the weight: the bias, how and from which versions it was made, and Eight
_lock = threading.Lock()


class EightBitLinear(nn.Linear):
    """x W^T + b."""

    eight: EightBits

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return self.products(eight_bits.rounded(input), input)

    def products(self, numbers: Rounded, input: Tensor) -> Tensor:
        """Return what `forward` does, given the numbers of `input`."""
        return eight_bits.multiply(numbers, self.eight).view(*input.shape[:-1], self.out_features)


class EightBitWeight(nn.Linear):
    """x W^T + b with a rounded weight and exact inputs; for few rows, since the weight is made whole each time."""

    eight: EightBits

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return F.linear(input, self.eight.whole()[:, : self.in_features].to(input.dtype), self.bias)


class EightBitPointwise(nn.Conv2d):
    """A 1x1 convolution, with a scale for each pixel."""

    eight: EightBits

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        pixels = input.permute(0, 2, 3, 1)
        made = eight_bits.multiply(eight_bits.rounded(pixels), self.eight)
        return made.view(*pixels.shape[:-1], self.out_channels).permute(0, 3, 1, 2)


class EightBitConv2d(AddingConv2d):
    """A 3x3 convolution, with a scale for each image."""

    eight: EightBits

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H', W')."""
        return self.multiplied(input)

    def takes(self, input: Tensor) -> bool:
        """Whether the kernel can compute for `input`."""
        return eight_bits.takes(input)

    def multiplied(self, input: Tensor, added: Tensor | None = None) -> Tensor:
        """Return the convolution of `input`, plus `added`, a map as the result."""
        return eight_bits.convolve(input, self.eight, self.stride[0], int(self.padding[0]), added)


class EightBitUpsample(Upsample):
    """Doubling and convolution in one: four convolutions of 2x2, as `PhasesConv2d` has them."""

    eight: tuple[EightBits, ...]

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Map (B, C, h, w) to (B, C, 2 h, 2 w), or exactly to another `size`."""
        doubles = size is None or tuple(size) == (2 * x.shape[2], 2 * x.shape[3])
        return eight_bits.double(x, self.eight) if doubles else super().forward(x, size)


class EightBitAttention(Attention):
    """Attention whose tokens are rounded once for queries, keys and values."""

    def forward(self, x: Tensor, keys_values: KeysValues | None = None) -> Tensor:
        """Attend from tokens `x` (B, L, D) over `keys_values`, or over `x` itself when None."""
        layers = [layer for layer in (self.to_q, self.to_k, self.to_v) if isinstance(layer, EightBitLinear)]
        if keys_values is not None or len(layers) < 3:
            return super().forward(x, keys_values)
        numbers = eight_bits.rounded(x)
        q, k, v = (split_heads(layer.products(numbers, x), self.heads) for layer in layers)
        return self.to_out[0](join_heads(self.kernel(q, k, v)))


def in_eight_bits(network: N, *, convolutions: bool, outermost: bool = True) -> N:
    """Return a copy of a U-Net on a CPU that computes with 8 bits; `network` stays as it is, and shares its tensors.

    Args:
        network: in float32 or bfloat16, packed or not. Layers of other kinds, such as an adapter's, stay exact.
        convolutions: 3x3 convolutions too, not only linear layers and 1x1 convolutions.
        outermost: the outermost level's 1x1 convolutions beside residual blocks too.
    """
    twin, known = shared_copy(network), len(_made)
    exact = dict(zip(twin.modules(), network.modules(), strict=True))
    kept = set() if outermost else _shortcuts(twin.down_blocks[0]) | _shortcuts(twin.up_blocks[-1])
    for module in twin.modules():
        if isinstance(module, Upsample):
            if convolutions and type(module.conv) in DOUBLING and _doubles(module.conv):
                vars(module)["eight"] = _kept(module.conv, _phases)
                module.__class__ = EightBitUpsample
                _give_back(exact[module.conv], module.conv)
            continue
        for layer in _inside(module):
            if layer is not None and layer not in kept and round_layer(layer, convolutions):
                _give_back(exact[layer], layer)
        for layer in _of_context(module):
            if type(layer) in LINEAR and _summed(layer) <= eight_bits.MOST:
                _become(layer, EightBitWeight)
                _give_back(exact[layer], layer)
    if len(_made) > known:
        give_back_free()  # of the exact weights, and of what was made on the way
    return twin


def _shortcuts(level: nn.Module) -> set[nn.Module]:
    """Return the 1x1 convolutions beside a level's residual blocks."""
    blocks = (module for module in level.modules() if isinstance(module, ResnetBlock))
    return {block.conv_shortcut for block in blocks if block.conv_shortcut is not None}


def _give_back(exact: nn.Module, twin: nn.Module) -> None:
    """Hold the weight that two layers share, and what was made of it, no longer, where it can be read again."""
    for layer in (exact, twin):
        vars(layer).pop("panels", None)
    packed = vars(exact).get("packed")
    if packed is None:
        pages.give_back(exact)
    else:
        packed.give_back()


def pays(*, convolutions: bool) -> bool:
    """Whether 8 bits are clearly faster here than the exact way in the number format that this processor is fast in."""
    dtype = torch.bfloat16 if packing.bfloat16_pays() else torch.float32
    if convolutions:
        return wins(Trial("int8 convolution", dtype), _convolutions, FASTER, ERROR)
    return wins(Trial("int8 linear", dtype), _linear, FASTER, ERROR)


def _linear(dtype: torch.dtype) -> Ways:
    x, layer = _drawn(512, 640, dtype=dtype), nn.Linear(640, 640, device="meta", dtype=dtype)
    layer.load_state_dict({"weight": _drawn(640, 640, dtype=dtype), "bias": x[0]}, assign=True)
    return _eight_and_packed(layer.requires_grad_(False), x)


def _convolutions(dtype: torch.dtype) -> Ways:
    x, layer = _drawn(1, 128, 32, 32, dtype=dtype), nn.Conv2d(128, 128, 3, padding=1, device="meta", dtype=dtype)
    layer.load_state_dict({"weight": _drawn(128, 128, 3, 3, dtype=dtype), "bias": x[0, :, 0, 0]}, assign=True)
    return _eight_and_packed(layer.requires_grad_(False), x.contiguous(memory_format=torch.channels_last))


def _eight_and_packed(layer: nn.Module, x: Tensor) -> Ways:
    """Return what a layer makes of `x` with 8 bits, and in the fastest exact way."""
    exact, eight = nn.Sequential(layer), shared_copy(layer)
    packing.pack(exact)
    round_layer(eight)
    return lambda: eight(x), lambda: exact(x)


def _drawn(*size: int, dtype: torch.dtype) -> Tensor:
    """Return normal numbers, without touching the random state of the process."""
    return torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(dtype)


def _inside(module: nn.Module) -> list[nn.Module | None]:
    """Return the layers of a module that every token or pixel goes through, or the noise level."""
    if isinstance(module, ResnetBlock):
        return [module.conv1, module.conv2, module.time_emb_proj, module.conv_shortcut]
    if isinstance(module, Downsample):
        return [module.conv]
    if isinstance(module, SpatialTransformer):
        return [module.proj_in, module.proj_out]
    if not isinstance(module, TransformerBlock):
        return []
    if type(module.attn1) is Attention:
        module.attn1.__class__ = EightBitAttention
    context = _of_context(module)
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear) and layer not in context]


def _of_context(module: nn.Module) -> list[nn.Linear]:
    """Return the layers of a transformer's block that make keys and values of the prompt."""
    if not isinstance(module, TransformerBlock):
        return []
    return [layer for name in ("to_k", "to_v") if isinstance(layer := getattr(module.attn2, name, None), nn.Linear)]


def round_layer(layer: nn.Module, convolutions: bool = True) -> bool:
    """Give a layer of a known kind a class that computes with 8 bits, in place; return whether it has it."""
    if type(layer) in LINEAR:
        kind: type[nn.Module] = EightBitLinear
    elif type(layer) in CONVOLUTIONS and isinstance(layer, nn.Conv2d):
        if not _regular(layer):
            return False
        if layer.kernel_size == layer.stride == (1, 1) and layer.padding == (0, 0):
            kind = EightBitPointwise
        elif convolutions:
            kind = EightBitConv2d
        else:
            return False
    else:
        return False
    assert isinstance(layer, nn.Linear | nn.Conv2d), "a layer of these kinds"
    if _summed(layer) > eight_bits.MOST:
        return False
    _become(layer, kind)
    return True


def _become(layer: nn.Module, kind: type[nn.Module]) -> None:
    vars(layer)["eight"] = _kept(layer, EightBits.of)
    object.__setattr__(layer, "__class__", kind)


def _regular(layer: nn.Conv2d) -> bool:
    """Whether the kernel computes convolutions of this form: square, dense, and with zeros around."""
    if layer.groups != 1 or layer.dilation != (1, 1) or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return False
    return all(down == right for down, right in (layer.kernel_size, layer.stride, layer.padding))


def _doubles(layer: nn.Conv2d) -> bool:
    """Whether a convolution after doubling is of the form that `eight_bits.double` computes."""
    usual = layer.kernel_size == (3, 3) and layer.stride == layer.padding == (1, 1)
    return usual and _regular(layer) and _summed(layer) <= eight_bits.MOST


def _summed(layer: nn.Linear | nn.Conv2d) -> int:
    """Return how many products are summed for each output."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    return layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]


def _phases(weight: Tensor, bias: Tensor | None) -> tuple[EightBits, ...]:
    return tuple(EightBits.of(part, bias) for part in phase_weights(weight))


def _kept(layer: nn.Module, make: Callable[[Tensor, Tensor | None], Eight]) -> Eight:
    """Return what `make` makes of weight and bias of a layer, again only where one of the two was changed."""
    packed = vars(layer).get("packed")
    source = layer.get_parameter("weight") if packed is None else packed
    bias = layer._parameters["bias"]
    how = make, _version(source), _version(bias)
    with _lock:
        known = _made.get(source)
        if known is None or known[0] is not bias or known[1] != how:
            weight = source if isinstance(source, Tensor) else source.plain()
            known = _made[source] = bias, how, make(weight, bias)
    return known[2]


def _version(source: object) -> int:
    """Return a number that grows as a tensor is written to; 0 where there is none."""
    return source._version if isinstance(source, Tensor) and not source.is_inference() else 0
