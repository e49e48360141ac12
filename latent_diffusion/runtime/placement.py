"""Where a model runs and what it computes in."""

import torch

from latent_diffusion.errors import ConfigError, ResourceError
from latent_diffusion.registry import nearest
from latent_diffusion.runtime.cpu.packing import bfloat16_pays

__all__ = ["DTYPES", "choose_device", "choose_dtype"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

SMALL = 200_000_000
"""Weights up to which half precision saves no time worth its rounding."""


def choose_device(device: str | torch.device | None) -> torch.device:
    """Return the device that `device` names; None = cuda if there, else cpu.

    Raises:
        ConfigError: no such kind of device.
        ResourceError: it is not in this machine.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}; use cpu, cuda or cuda:1") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ResourceError(
            f"device {str(device)!r} does not exist: this machine has {torch.cuda.device_count()} CUDA devices; use cpu"
        )
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device {str(device)!r} is not supported; use cpu, cuda or cuda:1")
    return chosen


def choose_dtype(dtype: str | torch.dtype, device: torch.device, num_weights: int) -> torch.dtype:
    """Return what the U-Net computes in.

    "auto" is float32 for small models. For large ones it is bfloat16 on a CPU where that is clearly faster (tried, for
    some milliseconds), else float32; on a GPU bfloat16, or float16 without it.

    Raises:
        ConfigError: a name or torch dtype that is none of `DTYPES`.
    """
    if dtype == "auto":
        if device.type not in ("cpu", "cuda") or num_weights <= SMALL:
            return torch.float32
        if device.type == "cpu":
            return torch.bfloat16 if bfloat16_pays() else torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        known = ("auto", *DTYPES)
        raise ConfigError(f"unknown dtype {str(dtype)!r}; there are {', '.join(known)}{nearest(str(dtype), known)}")
    return chosen
