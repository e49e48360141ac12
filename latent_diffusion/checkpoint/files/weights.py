"""Weights that still lie on the disk: checked by name and shape first, then fetched tensor by tensor.

A network is filled one tensor at a time, each cast on its way, so that memory holds the network in its own dtype and
one tensor of the file, never the file. What needs no cast is mapped: it takes memory when it is first used, not before.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from latent_diffusion.checkpoint.files.mapping import LARGE, own_pages
from latent_diffusion.errors import CheckpointError
from latent_diffusion.nn.reread import note_reader

__all__ = ["Stored", "Weights", "dtype_name", "fill"]

logger = logging.getLogger(__name__)

SHOWN = 5  # names listed of each kind of misfit
WRAPPERS = ("module.", "_orig_mod.", "model.", "unet.", "vae.")  # what wrappers leave in front of names

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: what it is, and how to fetch it."""

    shape: tuple[int, ...]
    dtype: torch.dtype  # in the file
    fetch: Callable[[], Tensor]  # returns it on the CPU, in memory of its own
    mapped: bool = False  # that memory is a piece of the file, which fetching it again leaves on the disk

    @classmethod
    def of(cls, tensor: Tensor) -> "Stored":
        """Return a tensor that is in memory already."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    def viewed(self, shape: tuple[int, ...], view: Callable[[Tensor], Tensor]) -> "Stored":
        """Return what `view` makes of the tensor when it is fetched: (...) -> `shape`."""
        return replace(self, shape=shape, fetch=lambda: view(self.fetch()))


@dataclass(frozen=True)
class Weights:
    """Tensors by name and the file they lie in, which errors name."""

    source: Path
    tensors: Mapping[str, Stored]

    def casts(self, part: str, dtype: torch.dtype | None) -> tuple[str, ...]:
        """Return what loading `part` of a model in `dtype` changes, one line for each dtype of the file."""
        if dtype is None:
            return ()
        counts = Counter(stored.dtype for stored in self.tensors.values() if stored.dtype != dtype)
        return tuple(f"{part}: {n} tensors cast, {dtype_name(old)} -> {dtype_name(dtype)}" for old, n in counts.items())


def fill(model: Network, weights: Weights, dtype: torch.dtype | None, *, at_once: bool = False) -> Network:
    """Fill a network built on the meta device; on the CPU, in `dtype` (None: the file's), in evaluation mode.

    Args:
        model: the network.
        weights: under its names.
        dtype: of its tensors from now on.
        at_once: all of it is used at its first use, and then in every step: what is mapped need not leave memory again
            after it was checked.

    Raises:
        CheckpointError: names or shapes do not fit, or a weight is no finite number.
    """
    check_fit(weights, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    state, nothing = {}, True
    for name, stored in weights.tensors.items():
        state[name], largest = _cast(weights.source, name, stored.fetch(), dtype)
        if stored.mapped and state[name].dtype == stored.dtype and not at_once:
            state[name] = stored.fetch()  # in place of the one that was looked at: its pages are given back
        nothing = nothing and largest == 0
    if nothing:
        raise CheckpointError(f"{weights.source}: every weight is 0: the file was never filled")
    model.load_state_dict(state, assign=True)
    for name, weight in model.named_parameters():
        if (stored := weights.tensors[name]).mapped:
            note_reader(weight, partial(_read, stored, dtype))
    logger.debug("%s: %d tensors", weights.source, len(state))
    return model.eval()


def check_fit(weights: Weights, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Check names, shapes and kinds, before any tensor is fetched.

    Raises:
        CheckpointError: counts and the first names that are missing or unknown; or the first that differs.
    """
    source, found = weights.source, weights.tensors
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or unknown:
        kinds = [f"{len(n)} {kind}: {some(n)}" for kind, n in (("missing", missing), ("unknown", unknown)) if n]
        wrapped = next((p for p in WRAPPERS if unknown and all(name.startswith(p) for name in found)), None)
        cause = f"; every name starts with {wrapped!r}: save the network without its wrapper" if wrapped else ""
        raise CheckpointError(f"{source}: tensors do not fit config.json: {'; '.join(kinds)}{cause}")
    for name, shape in wanted.items():
        if found[name].shape != tuple(shape):
            raise CheckpointError(
                f"{source}: {name} is {found[name].shape}, config.json requires {tuple(shape)}{_cause(name)}"
            )
        if not found[name].dtype.is_floating_point:
            raise CheckpointError(
                f"{source}: {name} is {dtype_name(found[name].dtype)}; weights are floating-point numbers"
            )


def _cast(source: Path, name: str, tensor: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, float]:
    """Return a weight in `dtype` (None: its own) and its largest absolute value; check that it holds finite numbers.

    Raises:
        CheckpointError: it holds NaN, infinity or a number beyond the range of `dtype`.
    """
    cast = _cast_to(tensor, dtype)
    largest = _largest(cast)
    if not math.isfinite(largest):
        if math.isfinite(_largest(tensor)):
            raise CheckpointError(
                f"{source}: {name} holds numbers beyond the range of {dtype_name(cast.dtype)}; use bfloat16"
            )
        raise CheckpointError(f"{source}: {name} holds NaN or infinity: the file is damaged or its training diverged")
    return cast, largest


def _read(stored: Stored, dtype: torch.dtype | None) -> Tensor:
    return _cast_to(stored.fetch(), dtype)


def _cast_to(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return `tensor` in `dtype`; a large one outside the heap, for it may be packed into another order soon."""
    if dtype in (None, tensor.dtype):
        return tensor
    size = tensor.numel() * dtype.itemsize
    if size < LARGE:
        return tensor.to(dtype)
    return torch.frombuffer(own_pages(size), dtype=dtype).reshape(tensor.shape).copy_(tensor)


def _largest(tensor: Tensor) -> float:
    """Return the largest absolute value, NaN or infinity where there is any, in one pass without a temporary."""
    if not tensor.numel():
        return 0.0
    low, high = torch.aminmax(tensor.float() if tensor.element_size() == 1 else tensor)  # float8 has no arithmetic
    return torch.maximum(low.abs(), high.abs()).item()


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype, such as float32."""
    return str(dtype).removeprefix("torch.")


def some(names: list[str]) -> str:
    """Return the first names of a list, for an error."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _cause(name: str) -> str:
    if name == "conv_in.weight":
        return "; is one of them an inpainting model (9 input channels)?"
    if ".attn2.to_" in name:
        return "; were they made for different text encoders (SD 1: 768, SD 2: 1024, SDXL: 2048)?"
    return ""
