"""A network rebuilt for a GPU: the same weights under the same names, in the layout and operations that suit one.

- maps are channels_last, which is how tensor cores read convolutions;
- GroupNorm and SiLU, GEGLU, and sums with the biases of convolutions each are one pass over memory (`fusions`);
- 1x1 convolutions around the tokens are matrix products, which add their bias for nothing;
- the queries, keys and values of self-attention are one matrix product, with the three weights joined once;
- the autoencoder's one wide head does not go through kernels made for narrow ones (`wide_heads`).

Modules get other classes and nothing else: parameters keep their names and values, so the state dict, what is saved and
what diffusers is handed are as before. With gradients on, every module computes as the model's own does.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_diffusion.nn.attention import Attention, KeysValues, join_heads
from latent_diffusion.nn.resnet import ResnetBlock
from latent_diffusion.nn.transformer import GatedLinear, SpatialTransformer, TransformerBlock
from latent_diffusion.runtime.cuda.fusions import Fusions, choose_fusions
from latent_diffusion.runtime.cuda.wide_heads import use_for_wide_heads

__all__ = ["fast_cuda", "fuse"]

M = TypeVar("M", bound=nn.Module)


def fast_cuda(module: M, dtype: torch.dtype) -> M:
    """Rebuild `module`, which lies on a GPU in `dtype`, in place, and return it; a second time changes nothing.

    Do it to a `shared_copy` where the module itself is to stay as it is. The weights of its convolutions become
    channels_last, with the same values. A warning names the fused kernels that do not work.
    """
    device = next(module.parameters()).device
    fuse(module.to(memory_format=torch.channels_last), choose_fusions(device, dtype))
    use_for_wide_heads(module, device, dtype)
    return module


def fuse(module: nn.Module, fusions: Fusions) -> None:
    """Let the layers of `module` compute with `fusions`, and self-attention with joined weights; in place."""
    for layer in list(module.modules()):
        if isinstance(layer, TransformerBlock) and type(layer.attn1) is Attention:
            _become(layer.attn1, JoinedAttention, joined=None)
        for kind in (FusedResnetBlock, FusedTransformer, FusedGatedLinear, FusedGroupNorm):
            if type(layer) is kind.__base__:
                _become(layer, kind, fusions=fusions)


def _become(layer: nn.Module, kind: type[nn.Module], **fields: object) -> None:
    """Give a module another way to compute; its parameters and children stay."""
    layer.__class__ = kind
    vars(layer).update(fields)


class FusedGroupNorm(nn.GroupNorm):
    """GroupNorm that keeps channels_last."""

    fusions: Fusions

    def forward(self, input: Tensor) -> Tensor:
        """Norm maps (B, C, H, W)."""
        if torch.is_grad_enabled():
            return super().forward(input)
        return self.fusions.norm(input, self, silu=False)


class FusedResnetBlock(ResnetBlock):
    """Residual block: what is added to a map is added where the next layer reads it."""

    fusions: Fusions

    def _forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        if torch.is_grad_enabled():
            return super()._forward(x, time)
        norm, shortcut = self.fusions.norm, self.conv_shortcut
        shift = None if self.time_emb_proj is None else self.time_emb_proj(time)  # (B, C)
        hidden = _convolved(self.conv1, norm(x, self.norm1, silu=True))
        hidden = _convolved(self.conv2, norm(hidden, self.norm2, silu=True, bias=self.conv1.bias, time=shift))
        if shortcut is None:
            return self.fusions.add(hidden, x, _bias(self.conv2))
        return self.fusions.add(hidden, _convolved(shortcut, x), _bias(self.conv2), shortcut.bias)


class FusedTransformer(SpatialTransformer):
    """Transformer between projections that are matrix products also where they are written as 1x1 convolutions.

    A channels_last map is a list of tokens already, and a product adds its bias for nothing.
    """

    def _forward(self, x: Tensor, context: Sequence[KeysValues]) -> Tensor:
        if torch.is_grad_enabled():
            return super()._forward(x, context)
        tokens = _projected(self.proj_in, self.norm(x).flatten(2).transpose(1, 2))  # (B, H * W, C)
        for block, keys_values in zip(self.transformer_blocks, context, strict=True):
            tokens = block(tokens, keys_values)
        return x + _projected(self.proj_out, tokens).transpose(1, 2).unflatten(2, x.shape[-2:])


class FusedGatedLinear(GatedLinear):
    """Gated linear layer: value and gate are read once."""

    fusions: Fusions

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, width) to (B, L, hidden)."""
        return super().forward(x) if torch.is_grad_enabled() else self.fusions.geglu(self.proj(x))


class JoinedAttention(Attention):
    """Self-attention whose three projections are one product."""

    joined: tuple[list[tuple], tuple[Tensor, ...], Tensor] | None  # what it was made of, and the weights (3 D, D)

    def forward(self, x: Tensor, keys_values: KeysValues | None = None) -> Tensor:
        """Attend from tokens `x` (B, L, D) over `x` itself, or over `keys_values`."""
        if keys_values is not None or torch.is_grad_enabled():
            return super().forward(x, keys_values)
        heads = F.linear(x, self._weight()).unflatten(-1, (3, self.heads, -1))  # (B, L, 3, N, d)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        return self.to_out[0](join_heads(self.kernel(q, k, v)))

    def _weight(self) -> Tensor:
        """Return the joined weights, joined again where one was replaced (an adapter), moved or written to."""
        weights = (self.to_q.weight, self.to_k.weight, self.to_v.weight)
        marks = [(id(w), w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights]
        if self.joined is None or self.joined[0] != marks:
            with torch.inference_mode(False), torch.no_grad():
                self.joined = marks, weights, torch.cat(weights)  # with the weights, so that no other takes an id
        return self.joined[2]


def _convolved(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolve without the bias."""
    return conv._conv_forward(x, conv.weight, None)


def _projected(layer: nn.Module, tokens: Tensor) -> Tensor:
    """Map tokens (B, L, C) by a linear layer or a 1x1 convolution."""
    assert isinstance(layer, nn.Linear | nn.Conv2d), "projections are either"
    return F.linear(tokens, layer.weight.flatten(1), layer.bias)


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None, "all convolutions of the models have one"
    return conv.bias
