"""Three sums of small operations that a GPU does in one pass over memory: as plain torch, or as Triton kernels.

| name | what it is |
|---|---|
| `norm` | GroupNorm, with what is added to each channel before it and the SiLU after it |
| `geglu` | one half of the channels times the GELU of the other |
| `add` | two feature maps and the biases of the convolutions they come from |

Torch reads and writes the whole map for each of the parts, and its GroupNorm on GPUs also reorders channels_last maps,
twice. Triton is used where it is installed and a tiny call on the device gives torch's result; else a warning is
issued.
"""

import functools
import importlib.util
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_diffusion.errors import warn
from latent_diffusion.nn.transformer import gated_gelu
from latent_diffusion.runtime.agreement import TOLERANCE, error

__all__ = ["PLAIN", "Fusions", "choose_fusions", "difference", "triton_fusions"]


class Norm(Protocol):
    """GroupNorm of x + (bias + time), then SiLU where `silu`."""

    def __call__(
        self, x: Tensor, norm: nn.GroupNorm, *, silu: bool, bias: Tensor | None = None, time: Tensor | None = None
    ) -> Tensor:
        """Return the map (B, C, H, W), channels_last; `bias` (C,) and `time` (B, C) are added to `x` first."""
        ...


class Geglu(Protocol):
    """First half times GELU of the second."""

    def __call__(self, x: Tensor) -> Tensor:
        """Map (..., 2 D) to (..., D)."""
        ...


class Add(Protocol):
    """Sum of two maps and of up to two biases."""

    def __call__(self, x: Tensor, y: Tensor, bias: Tensor, other: Tensor | None = None) -> Tensor:
        """Return x + y + bias + other: maps (B, C, H, W), channels_last, biases (C,)."""
        ...


@dataclass(frozen=True)
class Fusions:
    """The three, from one source."""

    norm: Norm
    geglu: Geglu
    add: Add


def _norm(
    x: Tensor, norm: nn.GroupNorm, *, silu: bool, bias: Tensor | None = None, time: Tensor | None = None
) -> Tensor:
    for added in (None if bias is None else bias[None], time):
        x = x if added is None else x + added[:, :, None, None]
    x = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return F.silu(x) if silu else x


def _add(x: Tensor, y: Tensor, bias: Tensor, other: Tensor | None = None) -> Tensor:
    both = bias if other is None else bias + other
    return x + both[:, None, None] + y


PLAIN = Fusions(_norm, gated_gelu, _add)


def triton_fusions() -> Fusions:
    """Return the Triton kernels; Triton is imported here."""
    from latent_diffusion.runtime.cuda.triton_add import add
    from latent_diffusion.runtime.cuda.triton_geglu import geglu
    from latent_diffusion.runtime.cuda.triton_group_norm import group_norm

    return Fusions(group_norm, geglu, add)


@functools.cache
def choose_fusions(device: torch.device, dtype: torch.dtype) -> Fusions:
    """Return the Triton kernels where they work on `device` in `dtype`, else plain torch, with a warning."""
    if importlib.util.find_spec("triton") is None:
        reason = "Triton is not installed"
    else:
        try:
            fusions = triton_fusions()
            off = difference(fusions, device, dtype)
            if off <= TOLERANCE[dtype]:
                return fusions
            reason = f"they are off by {off:.1e}"
        except Exception as fault:  # no C compiler, a GPU it does not know: each part of Triton has errors of its own
            reason = (str(fault).strip() or type(fault).__name__).split("\n")[0][:200]
    message = f"fused kernels are not used on {device}, so drawing is slower with the same result: {reason}"
    warn(message)
    return PLAIN


@torch.no_grad()
def difference(fusions: Fusions, device: torch.device, dtype: torch.dtype) -> float:
    """Return by how much these are off from plain torch in float32, for tiny maps: the largest relative error."""
    generator = torch.Generator("cpu").manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(device, dtype)

    norm = nn.GroupNorm(4, 72, device=device, dtype=dtype)
    for parameter in norm.parameters():
        parameter.copy_(draw(72))
    wide = nn.GroupNorm(4, 72, device=device, dtype=torch.float32)
    wide.load_state_dict(norm.state_dict())
    x, y = (draw(2, 72, 9, 7).contiguous(memory_format=torch.channels_last) for _ in range(2))
    bias, other, time, tokens = draw(72), draw(72), draw(2, 72), draw(2, 5, 144)
    pairs = [
        (fusions.norm(x, norm, silu=False), PLAIN.norm(x.float(), wide, silu=False)),
        (
            fusions.norm(x, norm, silu=True, bias=bias, time=time),
            PLAIN.norm(x.float(), wide, silu=True, bias=bias.float(), time=time.float()),
        ),
        (fusions.geglu(tokens), PLAIN.geglu(tokens.float())),
        (fusions.add(x, y, bias), PLAIN.add(x.float(), y.float(), bias.float())),
        (fusions.add(x, y, bias, other), PLAIN.add(x.float(), y.float(), bias.float(), other.float())),
    ]
    return max(error(found, wanted) for found, wanted in pairs)
