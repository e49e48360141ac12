"""Faster ways through the layers of a network that trains on a CPU, forward and backward; its weights stay as they are.

| | plain | chosen |
|---|---|---|
| attention | torch's | in C (native/training_attention.c), where heads are narrow or the run is float32 |
| gated GELU | torch's | in C (native/gated.c) |
| float32 linear layers | MKL | 1x1 convolutions over the rows: oneDNN, in all three products |

Each is used where it gives the plain way's numbers in a small call. That call is not timed: on a busy machine two equal
runs would choose otherwise, round otherwise and end with other bits. The choice is part of the run from its start on.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_diffusion.nn.attention import Attention, ImageAttention, automatic
from latent_diffusion.nn.transformer import GatedLinear, gated_gelu
from latent_diffusion.runtime.native import gated, training_attention

__all__ = ["PLAIN", "ConvolvedLinear", "TrainingKernels", "choose_kernels", "install", "works"]

Ways = tuple[Callable[[], Tensor], ...]
"""The faster way and the plain one."""

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # relative, of results and gradients together
FEW_ROWS = 128  # of a linear layer's input: below it, choosing a convolution takes longer than the product


@dataclass(frozen=True)
class TrainingKernels:
    """Which layers take the faster way; the plain ones are the default."""

    native_attention: bool = False
    native_gelu: bool = False
    convolved_linear: bool = False


PLAIN = TrainingKernels()


class ConvolvedLinear(nn.Linear):
    """x W^T + b as a 1x1 convolution of an image with one column, whose pixels are the rows of x."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        rows = input.shape[:-1]
        if input.dtype != torch.float32 or rows.numel() < FEW_ROWS or torch.is_autocast_enabled("cpu"):
            return F.linear(input, self.weight, self.bias)
        image = input.reshape(1, -1, 1, self.in_features).permute(0, 3, 1, 2)  # channels_last
        made = F.conv2d(image, self.weight[:, :, None, None], self.bias)
        return made.permute(0, 2, 3, 1).reshape(*rows, self.out_features)


def choose_kernels(precision: str, device: torch.device) -> TrainingKernels:
    """Return what is right here for runs in `precision`; plain everywhere but on CPUs."""
    if device.type != "cpu" or precision not in ("float32", "bfloat16"):
        return PLAIN
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    return TrainingKernels(
        native_attention=training_attention.available() and _agree(dtype, _attentions(dtype)),
        native_gelu=gated.available() and _agree(dtype, _gelus(dtype)),
        convolved_linear=dtype == torch.float32 and _agree(dtype, _linears(dtype)),
    )


def _agree(dtype: torch.dtype, ways: Ways) -> bool:
    found, wanted = (way().float() for way in ways)
    return bool((found - wanted).norm() <= TOLERANCE[dtype] * wanted.norm())


def works(kernels: TrainingKernels) -> bool:
    """Whether this process has what `kernels` need."""
    attends = training_attention.available() or not kernels.native_attention
    return attends and (gated.available() or not kernels.native_gelu)


def install(module: nn.Module, kernels: TrainingKernels) -> None:
    """Let the layers of `module` compute by `kernels`, in place; parameters and state-dict keys stay.

    The autoencoder's attention, one wide head in one place, stays plain: it gains nothing.
    """
    wide = {part for layer in module.modules() if isinstance(layer, ImageAttention) for part in layer.modules()}
    for layer in module.modules():
        if kernels.native_attention and isinstance(layer, Attention):
            layer.kernel = training_attention.attend
        if kernels.native_gelu and isinstance(layer, GatedLinear):
            layer.kernel = gated.gated
        if kernels.convolved_linear and type(layer) is nn.Linear and layer not in wide:
            layer.__class__ = ConvolvedLinear


def _attentions(dtype: torch.dtype) -> Ways:
    """Return both ways to attend in heads of 16 channels; each gives the result and all gradients, as one vector."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, gradient = (torch.randn(4, n, 128, generator=generator).to(dtype) for n in (256, 77, 77, 256))
    inputs = [x.unflatten(-1, (8, 16)).transpose(1, 2).requires_grad_() for x in (q, k, v)]
    return tuple(
        _with_gradients(lambda kernel=kernel: kernel(*inputs), inputs, gradient.unflatten(-1, (8, 16)).transpose(1, 2))
        for kernel in (training_attention.attend, automatic)
    )


def _gelus(dtype: torch.dtype) -> Ways:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2048, 512, generator=generator).to(dtype).requires_grad_()
    gradient = torch.randn(2048, 256, generator=generator).to(dtype)
    return tuple(
        _with_gradients(lambda kernel=kernel: kernel(x), [x], gradient) for kernel in (gated.gated, gated_gelu)
    )


def _linears(dtype: torch.dtype) -> Ways:
    generator = torch.Generator().manual_seed(0)
    plain, x = nn.Linear(128, 512, dtype=dtype), torch.randn(2048, 128, generator=generator).to(dtype).requires_grad_()
    gradient = torch.randn(2048, 512, generator=generator).to(dtype)
    convolved = nn.Linear(128, 512, dtype=dtype)
    convolved.load_state_dict(plain.state_dict())
    install(convolved, TrainingKernels(convolved_linear=True))
    return tuple(
        _with_gradients(lambda layer=layer: layer(x), [x, *layer.parameters()], gradient)
        for layer in (convolved, plain)
    )


def _with_gradients(way: Callable[[], Tensor], inputs: list[Tensor], gradient: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.enable_grad():
            made = way()
            return torch.cat([x.reshape(-1) for x in (made.detach(), *torch.autograd.grad(made, inputs, gradient))])

    return run
