"""Faster ways through the layers of a network that trains on a CPU, forward and backward; its weights stay as they are.

| | plain | chosen |
|---|---|---|
| attention | torch's | in C (native/training_attention.c), where heads are narrow or the run is float32 |
| gated GELU | torch's | in C (native/gated.c) |
| float32 linear layers | MKL | 1x1 convolutions over the rows: oneDNN, in all three products, with AVX-512 |
| frozen 3x3 convolutions, float32 | oneDNN | Winograd in C, forward and back (frozen_layers.py) |
| trained ones, float32 | oneDNN | Winograd in C but for the weights' gradient (native/training_convolution.py) |
| frozen layers, bfloat16 | weights rounded at each call | rounded once |
| frozen 3x3 convolutions of small maps, bfloat16 | oneDNN, which reorders the weights | one product (columns.py) |

Each is used where it gives the plain way's numbers in a small call. That call is not timed: on a busy machine two equal
runs would choose otherwise, round otherwise and end with other bits. The choice is part of the run from its start on.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_diffusion.nn.attention import Attention, ImageAttention, automatic
from latent_diffusion.nn.transformer import GatedLinear, gated_gelu
from latent_diffusion.runtime.agreement import agree
from latent_diffusion.runtime.cpu.frozen_layers import freeze_layers, winograd_works
from latent_diffusion.runtime.cpu.native import gated, training_attention
from latent_diffusion.runtime.cpu.native.training_convolution import FasterConv2d, divisible

__all__ = ["PLAIN", "ConvolvedLinear", "TrainingKernels", "choose_kernels", "install", "works"]

Pair = tuple[Tensor, Tensor]
"""Outputs of the faster kernel and of the plain one: the result and all gradients, as one vector each."""

FEW_ROWS = 128  # of a linear layer's input: below it, choosing a convolution takes longer than the product


@dataclass(frozen=True)
class TrainingKernels:
    """The layers that use faster kernels; by default none."""

    native_attention: bool = False
    native_gelu: bool = False
    convolved_linear: bool = False
    winograd: bool = False
    rounded_once: bool = False
    columns: bool = False


PLAIN = TrainingKernels()


class ConvolvedLinear(nn.Linear):
    """x W^T + b as a 1x1 convolution of an image with one column, whose pixels are the rows of x."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        rows = input.shape[:-1]
        few = rows.numel() < FEW_ROWS or torch.get_num_threads() == 1  # one thread's convolutions are not oneDNN's
        if few or input.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
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
        native_attention=training_attention.available() and agree(*_attentions(dtype), dtype),
        native_gelu=gated.available() and agree(*_gelus(dtype), dtype),
        convolved_linear=dtype == torch.float32 and _onednn_gains() and agree(*_linears(dtype), dtype),
        winograd=dtype == torch.float32
        and winograd_works()
        and all(agree(*_convolutions(trained), dtype) for trained in (False, True)),
        rounded_once=dtype == torch.bfloat16,
        columns=dtype == torch.bfloat16,
    )


def _onednn_gains() -> bool:
    """Whether oneDNN may have instructions that MKL leaves unused on AMD's processors: with AVX2 both are as fast."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def works(kernels: TrainingKernels) -> bool:
    """Whether this process has what `kernels` need."""
    attends = training_attention.available() or not kernels.native_attention
    gates = gated.available() or not kernels.native_gelu
    return attends and gates and (winograd_works() or not kernels.winograd)


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
        trained = any(p.requires_grad for p in layer.parameters(recurse=False))
        if kernels.winograd and trained and type(layer) is nn.Conv2d and divisible(layer):
            layer.__class__ = FasterConv2d
    freeze_layers(module, rounded=kernels.rounded_once, multiplied_less=kernels.winograd, columns=kernels.columns)


def _attentions(dtype: torch.dtype) -> Pair:
    """Attend in heads of 16 channels."""
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randn(4, n, 128, generator=generator, dtype=torch.float32).to(dtype) for n in (256, 77, 77, 256))
    q, k, v, gradient = (x.unflatten(-1, (8, 16)).transpose(1, 2) for x in drawn)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    return _made(training_attention.attend, inputs, gradient), _made(automatic, inputs, gradient)


def _gelus(dtype: torch.dtype) -> Pair:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2048, 512, generator=generator, dtype=torch.float32).to(dtype).requires_grad_()
    gradient = torch.randn(2048, 256, generator=generator, dtype=torch.float32).to(dtype)
    return _made(gated.gated, [x], gradient), _made(gated_gelu, [x], gradient)


def _linears(dtype: torch.dtype) -> Pair:
    generator = torch.Generator().manual_seed(0)
    plain, convolved = (_drawn(nn.Linear(128, 512, dtype=dtype, device="meta")) for _ in range(2))
    x = torch.randn(2048, 128, generator=generator, dtype=torch.float32).to(dtype).requires_grad_()
    gradient = torch.randn(2048, 512, generator=generator, dtype=torch.float32).to(dtype)
    install(convolved, TrainingKernels(convolved_linear=True))
    return _made(convolved, [x], gradient, convolved.parameters()), _made(plain, [x], gradient, plain.parameters())


def _convolutions(trained: bool) -> Pair:
    """Run a convolution whose weight has a gradient or none."""
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(2, 64, 32, 32, generator=generator, dtype=torch.float32) for _ in range(2))
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    layers = (nn.Conv2d(64, 64, 3, padding=1, dtype=torch.float32, device="meta") for _ in range(2))
    plain, faster = (_drawn(layer).requires_grad_(trained) for layer in layers)
    install(faster, TrainingKernels(winograd=True))
    ways = [_made(conv, [x], gradient, conv.parameters() if trained else ()) for conv in (faster, plain)]
    return ways[0], ways[1]


def _drawn(layer: nn.Module) -> nn.Module:
    """Give `layer`, made on "meta", weights of a generator of its own; the random state of the process is not used."""
    generator = torch.Generator().manual_seed(1)
    drawn = {
        name: torch.randn(weight.shape, generator=generator, dtype=torch.float32).mul_(0.05).to(weight.dtype)
        for name, weight in layer.state_dict().items()
    }
    layer.load_state_dict(drawn, assign=True)
    return layer


def _made(
    way: Callable[..., Tensor], inputs: Iterable[Tensor], gradient: Tensor, weights: Iterable[Tensor] = ()
) -> Tensor:
    """Return what `way` makes of `inputs`, and its gradients to them and to `weights`."""
    with torch.enable_grad():
        made = way(*inputs)
        gradients = torch.autograd.grad(made, (*inputs, *weights), gradient)
        return torch.cat([x.reshape(-1) for x in (made.detach(), *gradients)])
