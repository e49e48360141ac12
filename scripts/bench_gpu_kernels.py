"""Peaks of a device, and single kernels at the sizes of SD 1.5 and SDXL; rows of `bench_gpu.py`."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from latent_diffusion.nn.attention import written_out
from latent_diffusion.runtime.cuda.fusions import PLAIN, Fusions, choose_fusions
from latent_diffusion.runtime.cuda.wide_heads import WIDEST_FUSED, attend_wide

Work = Callable[[], Any]
Row = Callable[[str, float, Callable[[], dict[str, Any]]], None]

ATTENTION = {  # queries, heads of both rows of guidance, channels a head
    "SD1.5 64x64": (4096, 16, 40),
    "SD1.5 32x32": (1024, 16, 80),
    "SDXL 64x64": (4096, 20, 64),
    "SDXL 32x32": (1024, 40, 64),
    "decoder 64x64": (4096, 1, 512),
    "decoder 128x128": (16384, 1, 512),
}
MAPS = {
    "U-Net 64x64": (2, 320, 64),
    "U-Net 32x32": (2, 640, 32),
    "U-Net 16x16": (2, 1280, 16),
    "decoder": (1, 128, 512),
}
TOKENS = {"SD1.5 64x64": (8192, 1280), "SDXL 64x64": (8192, 2560), "SDXL 32x32": (2048, 5120)}  # tokens, hidden width


def synchronized(device: torch.device, work: Work) -> float:
    """Return the seconds of `work`, the device's included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def fastest(device: torch.device, work: Work, times: int, rounds: int = 5) -> float:
    """Return the seconds of one `work` among `times` launched together, in the fastest of some rounds."""
    work()
    return min(synchronized(device, lambda: [work() for _ in range(times)]) for _ in range(rounds)) / times


def peaks(device: torch.device, *, tiny: bool) -> dict[str, float]:
    """Return what the device reaches: bfloat16 matrix products, and copies counted as read and written."""
    side, count = (128, 2**16) if tiny else (8192, 2**30)
    a, b = (torch.randn(side, side, device=device).to(torch.bfloat16) for _ in range(2))  # zeros would run faster
    product = fastest(device, lambda: a @ b, 10)
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    copied = fastest(device, lambda: target.copy_(source), 10)
    return {"matmul_tflops": 2 * side**3 / product / 1e12, "copy_tb_s": 2 * 4 * count / copied / 1e12}


def kernel_rows(row: Row, device: torch.device, dtype: torch.dtype, *, tiny: bool) -> None:
    """Add a row for each size: milliseconds by kernel."""
    share = 16 if tiny else 1

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    for name, (queries, heads, width) in ATTENTION.items():
        row(f"attention {name}", 5, lambda n=queries // share, h=heads, d=width: attention(draw, device, n, h, d))
    for name, (batch, channels, side) in MAPS.items():
        row(f"norm and SiLU {name}", 5, lambda b=batch, c=channels, s=side // share: norm(draw, device, dtype, b, c, s))
    for name, (tokens, hidden) in TOKENS.items():
        row(f"GEGLU {name}", 5, lambda n=tokens // share, d=2 * hidden: geglu(draw, device, dtype, n, d))


def attention(draw: Callable[..., Tensor], device: torch.device, n: int, heads: int, width: int) -> dict[str, Any]:
    """Return milliseconds of each of torch's kernels; those that do not take the sizes are left out."""
    q, k, v = (draw(1, n, heads, width).transpose(1, 2) for _ in range(3))
    found: dict[str, Any] = {"sdpa_ms": _ms(device, lambda: F.scaled_dot_product_attention(q, k, v))}
    for kind in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        try:
            with sdpa_kernel(kind):
                found[f"{kind.name.lower()}_ms"] = _ms(device, lambda: F.scaled_dot_product_attention(q, k, v))
        except RuntimeError:
            continue
    if device.type == "cuda" and width > WIDEST_FUSED:
        found["wide_heads_ms"] = _ms(device, lambda: attend_wide(q, k, v))
    return found | {"written_out_ms": _ms(device, lambda: written_out(q, k, v))}


def norm(
    draw: Callable[..., Tensor], device: torch.device, dtype: torch.dtype, batch: int, channels: int, side: int
) -> dict[str, Any]:
    """Return milliseconds of GroupNorm and SiLU of a channels_last map, both ways, and of the bare copy of the map."""
    x = draw(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
    layer = nn.GroupNorm(32, channels, device=device, dtype=dtype)
    ways = both(device, dtype)
    found = {f"{name}_ms": _ms(device, lambda way=way: way.norm(x, layer, silu=True)) for name, way in ways.items()}
    return found | {"copy_ms": _ms(device, lambda: x.clone(memory_format=torch.preserve_format))}


def geglu(draw: Callable[..., Tensor], device: torch.device, dtype: torch.dtype, n: int, width: int) -> dict[str, Any]:
    """Return milliseconds of GEGLU, both ways."""
    x = draw(1, n, width)
    ways = both(device, dtype)
    return {f"{name}_ms": _ms(device, lambda way=way: way.geglu(x)) for name, way in ways.items()}


def both(device: torch.device, dtype: torch.dtype) -> dict[str, Fusions]:
    """Return torch's operations, and on a GPU ours."""
    return {"torch": PLAIN} | ({"ours": choose_fusions(device, dtype)} if device.type == "cuda" else {})


def _ms(device: torch.device, work: Work) -> float:
    return round(1000 * fastest(device, work, 20 if device.type == "cuda" else 1), 4)
