"""What is measured: one case, one model, one size, one number format, the same for every tool that does it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from latent_diffusion.runtime.placement import DTYPES

__all__ = ["AbsentError", "Call", "Plan", "Ready", "drawn", "half_or_full"]

Call = Callable[[], Mapping[str, Tensor]]
"""Does the work once and returns what it made, by name, for the comparison with others."""


class AbsentError(Exception):
    """A tool that is not installed or cannot do the case: the row is skipped, and the text says why."""


@dataclass(frozen=True)
class Plan:
    """One question to every tool."""

    case: str  # as "unet-step"
    model: str  # a bundled model's name, a family's (random weights), or a folder
    dtype: str  # "float32", "bfloat16", or "auto": what each tool takes by itself
    device: str  # "cpu" or "cuda"
    size: int | None = None  # px a side; None = the model's
    batch: int | None = None  # pictures at a time; None = 1, or what the case is known for
    steps: int = 20  # of a whole picture

    def torch_dtype(self, otherwise: torch.dtype) -> torch.dtype:
        """Return the torch dtype that is asked for; `otherwise` is what "auto" means."""
        return otherwise if self.dtype == "auto" else DTYPES[self.dtype]


@dataclass
class Ready:
    """One tool, ready to be called."""

    call: Call
    dtype: torch.dtype  # what it computes in
    seconds: dict[str, float] = field(default_factory=dict)  # what it took to get there, by name: load, prepare
    warm_up: Call | None = None  # a shorter first call, where a whole one takes minutes
    split: dict[str, float] = field(default_factory=dict)  # where the seconds of all calls went, where that is known


def drawn(name: str, *shape: int) -> Tensor:
    """Return standard normal numbers, the same in every process that asks for this name and shape; float32, CPU."""
    seed = sum(name.encode()) + sum(shape)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def half_or_full(device: str) -> torch.dtype:
    """Return bfloat16 where the device multiplies in it, else float32: what a careful user of a tool would choose."""
    if device == "cpu":
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32  # all with AMX have it
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
