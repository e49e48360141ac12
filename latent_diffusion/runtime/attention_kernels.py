"""The networks' attention kernel: chosen by name, tried on the device, and reported.

| name | kernel |
|---|---|
| `auto` | `native` where it was built and pays, else torch's fused kernels, else (small bfloat16 work) plain calls |
| `native` | our own, in C, for CPUs; in bfloat16 for those with AVX512-BF16 |
| `sdpa` | torch's fused kernels |
| `xformers` | memory-efficient attention of xformers; imported only when named |
| `math` | the formula as it stands, all scores in memory: the reference |

A named kernel that does not work is an error, never a silent second choice. It counts as working when a tiny call with
the model's own head widths, on its device and in its dtype, gives what the formula gives.
"""

import torch
from torch import Tensor, nn

from latent_diffusion.errors import ConfigError, ResourceError
from latent_diffusion.nn.attention import Attention, ImageAttention, Kernel, automatic, sdpa, written_out
from latent_diffusion.registry import nearest
from latent_diffusion.runtime.cpu.native.attention import attend, attends

__all__ = ["BACKENDS", "check_backend", "describe_auto", "head_widths", "set_kernel"]

BACKENDS = ("auto", "native", "sdpa", "xformers", "math")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the tiny call, whose values are ~1


def set_kernel(model: nn.Module, backend: str, device: torch.device, dtype: torch.dtype, *, fast: bool = True) -> None:
    """Let every attention of `model` call the kernel that `backend` names, on `device` with inputs of `dtype`.

    Without `fast` "auto" chooses among torch's kernels only.

    Raises:
        ConfigError: no such name.
        ResourceError: it does not work here; the message gives the reason.
    """
    kernel = load_kernel(check_backend(backend), device, dtype, fast=fast)
    for width in sorted(head_widths(model)):
        _try_out(kernel, backend, width, device, dtype)
    for module in model.modules():
        if isinstance(module, Attention | ImageAttention):
            module.kernel = kernel


def check_backend(backend: str) -> str:
    """Return `backend` where it is one of `BACKENDS`.

    Raises:
        ConfigError: it is not.
    """
    if backend not in BACKENDS:
        raise ConfigError(
            f"unknown attention {backend!r}; there are {', '.join(BACKENDS)}{nearest(str(backend), BACKENDS)}"
        )
    return backend


def describe_auto(device: torch.device, dtype: torch.dtype, *, fast: bool = True) -> str:
    """Return which kernel `auto` takes on `device` for networks in `dtype`, for people."""
    if fast and device.type == "cpu" and attends(dtype):
        return "native"
    if device.type == "cpu" and dtype == torch.bfloat16:
        return "math while the scores are small, else sdpa"
    return "sdpa"


def head_widths(model: nn.Module) -> set[int]:
    """Return the channels of one head of every attention in `model`."""
    widths = {m.to_q.out_features // m.heads for m in model.modules() if isinstance(m, Attention)}
    return widths | {m.to_q.out_features for m in model.modules() if isinstance(m, ImageAttention)}


def load_kernel(backend: str, device: torch.device, dtype: torch.dtype, *, fast: bool = True) -> Kernel:
    """Return the kernel of a known name for inputs of `dtype` on `device`.

    Raises:
        ResourceError: xformers cannot be imported, or the native kernel was not built or does not run here.
    """
    if backend == "xformers":
        return _xformers()
    asked = backend == "native" or (backend == "auto" and fast)
    native = asked and device.type == "cpu" and attends(dtype)
    if backend == "native" and not native:
        raise ResourceError(
            f"attention 'native' is not available on {device} in {str(dtype).removeprefix('torch.')}: it needs a CPU "
            "(for bfloat16 one with AVX512-BF16) where it is no slower, and a C compiler at install time; use 'auto'"
        )
    return attend if native else {"auto": automatic, "sdpa": sdpa, "math": written_out}[backend]


def _xformers() -> Kernel:
    try:
        from xformers.ops import memory_efficient_attention  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError, RuntimeError) as error:  # a wheel for another torch fails in any of these ways
        reason = str(error).split("\n")[0][:200]
        raise ResourceError(
            f"attention 'xformers' cannot be imported: {reason}; install the wheel for this torch, or use 'sdpa'"
        ) from error

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # xformers has the heads after the tokens: (B, L, N, d)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return memory_efficient_attention(q, k, v).transpose(1, 2)

    return attend


@torch.no_grad()
def _try_out(kernel: Kernel, backend: str, width: int, device: torch.device, dtype: torch.dtype) -> None:
    """Call the kernel once for heads of `width` channels.

    Raises:
        ResourceError: it fails or gives something else than the formula.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    q, k, v = (torch.randn(1, 2, length, width, generator=generator, dtype=torch.float32) for length in (16, 9, 9))
    wanted = written_out(q, k, v)
    where = f"on {device} in {str(dtype).removeprefix('torch.')} with heads of {width} channels"
    try:
        found = kernel(*(x.to(device=device, dtype=dtype) for x in (q, k, v))).float().cpu()
    except Exception as error:  # every library has its own for "not here"
        reason = str(error).strip().split("\n")[0][:200]
        raise ResourceError(f"attention {backend!r} does not work {where}: {reason}; use 'auto' or 'sdpa'") from error
    off = (found - wanted).abs().max().item() if found.shape == wanted.shape else float("nan")
    if not off <= TOLERANCE[dtype]:
        raise ResourceError(f"attention {backend!r} gives wrong values {where}: off by {off:.1e}; use 'auto' or 'sdpa'")
