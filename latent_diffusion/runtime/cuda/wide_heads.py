"""Attention with one head of hundreds of channels, the autoencoder's, on GPUs.

Torch's fast kernels end at 256 channels, and the one it then takes was made for narrow heads. Two matrix products and a
softmax are what GPUs are good at; scores stay float32, so nothing is rounded that the fused kernel would not round, and
queries come in chunks, so that the scores of a large picture fit into memory.
"""

import functools

import torch
from torch import Tensor, nn

from latent_diffusion.nn.attention import ImageAttention, automatic, written_out
from latent_diffusion.runtime.agreement import agree

__all__ = ["WIDEST_FUSED", "attend_wide", "use_for_wide_heads"]

WIDEST_FUSED = 256  # channels of a head that flash attention takes
SCORES = 2**26  # entries at once: 256 MiB in float32
HALF = (torch.bfloat16, torch.float16)


def attend_wide(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from q (B, N, L, d) over k and v (B, N, S, d), all on a GPU in half precision -> (B, N, L, d)."""
    if torch.is_grad_enabled() and q.requires_grad:
        return automatic(q, k, v)
    heads = q.shape[:2]
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    rows = max(1, SCORES // (len(q) * k.shape[1]))
    return torch.cat([_attend(part, k, v) for part in q.split(rows, dim=1)], dim=1).unflatten(0, heads)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = _products(q, k.transpose(1, 2)).mul_(q.shape[-1] ** -0.5)  # (B N, rows, S) float32
    return torch.bmm(torch.softmax(scores, dim=-1).to(v.dtype), v)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b in float32, of half-precision factors."""
    return torch.ops.aten.bmm.dtype(a, b, torch.float32)


def use_for_wide_heads(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Let wide heads of `module` whose kernel is torch's own choice attend so, where that works; in place."""
    for layer in module.modules():
        if isinstance(layer, ImageAttention) and layer.kernel is automatic:
            width = layer.to_q.out_features
            if width > WIDEST_FUSED and dtype in HALF and _works(width, device, dtype):
                layer.kernel = attend_wide


@functools.cache
@torch.no_grad()
def _works(width: int, device: torch.device, dtype: torch.dtype) -> bool:
    generator = torch.Generator("cpu").manual_seed(0)
    q, k, v = (
        torch.randn(1, 1, length, width, generator=generator, dtype=torch.float32).to(device, dtype)
        for length in (24, 40, 40)
    )
    wanted = written_out(q.float(), k.float(), v.float())
    try:
        return agree(attend_wide(q, k, v), wanted, dtype)
    except (RuntimeError, AttributeError, NotImplementedError):  # a torch or a GPU without such products
        return False
