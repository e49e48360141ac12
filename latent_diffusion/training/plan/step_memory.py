"""Memory of one forward and backward pass, counted on tensors without memory.

A network on the meta device has shapes and no numbers. It is run as in training, and the bytes of all tensors that
exist at a time are added up: what autograd keeps, what is computed again, and the gradients that have arrived.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latent_diffusion.conditioning import Conditioning
from latent_diffusion.models.unet import UNet
from latent_diffusion.nn.attention import Attention

__all__ = ["encoding_peak", "step_peak"]

TOKENS = 77  # of a caption of one chunk


class LiveBytes(TorchDispatchMode):
    """Adds up the bytes of all tensors that exist, those given to it aside.

    Args:
        known: tensors that are not counted: weights.
        share: bytes of a value over those of float32; gradients have the format of their weights.
        gradients_stay: whether gradients of weights stay until all are there.
    """

    def __init__(self, known: Iterable[Tensor], share: float = 1.0, *, gradients_stay: bool = True) -> None:
        super().__init__()
        self._stay = gradients_stay
        self._sizes: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self._share, self._values, self._gradients = share, 0, 0
        self.peak = 0.0
        """Most bytes at a time."""

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation and count what it made."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._sizes:
                    self._sizes[storage._cdata] = storage.nbytes()
                    self._values += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage._cdata)
        self.peak = max(self.peak, self._values * self._share + self._gradients)
        return made

    def _gone(self, place: int) -> None:
        self._values -= self._sizes.pop(place, 0)

    def keep(self, weight: Tensor) -> None:
        """Count the gradient of a weight, which has arrived, in the weight's format."""
        assert weight.grad is not None, "called by autograd when it is there"
        size = self._sizes.pop(weight.grad.untyped_storage()._cdata, 0)
        self._values -= size
        if self._stay:
            self._gradients += size
        else:
            weight.grad = None


class Attended(torch.autograd.Function):
    """Attention as a fused kernel keeps it: queries, keys, values and the result, no scores."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        made = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, made)
        return made

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return a tensor like q (B, N, L, d)."""
    made = Attended.apply(q, k, v)
    assert isinstance(made, Tensor), "one result"
    return made


def step_peak(
    unet: UNet, batch: int, height: int, width: int, *, pooled: int, precision: str, gradients_stay: bool = True
) -> int:
    """Return the most bytes that activations and gradients of one micro-batch take at a time.

    Args:
        unet: on the meta device, with its adapter and its checkpointing, and gradients where it is trained.
        batch: pictures B of the micro-batch.
        height: of the latents.
        width: of the latents.
        pooled: channels of the pooled text states; 0 = none.
        precision: of the forward pass, "float32" or "bfloat16".
        gradients_stay: whether gradients of weights stay until all are there.
    """
    for layer in unet.modules():
        if isinstance(layer, Attention):
            layer.kernel = attended
    half = precision == "bfloat16"
    trained = [weight for weight in unet.parameters() if weight.requires_grad]
    counted = LiveBytes(unet.parameters(), 0.5 if half else 1.0, gradients_stay=gradients_stay)
    hooks = [weight.register_post_accumulate_grad_hook(counted.keep) for weight in trained]
    with torch.enable_grad(), counted, torch.device("meta"):
        x, times = torch.empty(batch, unet.config.in_channels, height, width), torch.empty(batch, dtype=torch.long)
        context = torch.empty(batch, TOKENS, unet.config.cross_attention_dim)
        told = torch.empty(batch, pooled) if pooled else None
        sizes = torch.empty(batch, 6) if unet.config.added_width else None
        if not any(weight.requires_grad for weight in unet.parameters()):
            context.requires_grad_()  # of a trained text encoder
        output = unet(x, times, unet.project(Conditioning(context, told, sizes)))
        output.square().mean().backward()
    for hook, weight in zip(hooks, trained, strict=True):
        hook.remove()
        weight.grad = None
    wide = [weight for weight in trained if weight.ndim > 1 and weight.dtype != torch.bfloat16]
    copies = 2 * sum(weight.numel() for weight in wide) if half else 0  # autocast's, rounded
    return int(counted.peak) + copies


def encoding_peak(encode: Callable[[Tensor], Any], network: nn.Module, height: int, width: int) -> int:
    """Return the most bytes that the autoencoder's encoder takes for one picture, beside its weights, float32."""
    counted = LiveBytes(network.parameters())
    with torch.no_grad(), counted:
        encode(torch.empty(1, 3, height, width, device="meta"))
    return int(counted.peak)
