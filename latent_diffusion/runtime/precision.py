"""The number formats of training: what weights are kept in, and what the forward pass computes in."""

from contextlib import AbstractContextManager, nullcontext

import torch

from latent_diffusion.errors import ConfigError

__all__ = ["autocast", "weight_dtype"]


def weight_dtype(precision: str) -> torch.dtype:
    """Return the dtype of weights, gradients and optimizer state: float32, or float64 for tests.

    bfloat16 trains float32 weights under autocast: bfloat16 weights lose updates smaller than 1/256 of themselves.
    """
    return torch.float64 if precision == "float64" else torch.float32


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Return the context of the forward pass for `precision` ("float32", "bfloat16", "float64").

    Raises:
        ConfigError: the device does not compute in that precision.
    """
    if precision != "bfloat16":
        return nullcontext()
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("precision: this GPU has no bfloat16; use precision: float32")
    return torch.autocast(device.type, dtype=torch.bfloat16)
