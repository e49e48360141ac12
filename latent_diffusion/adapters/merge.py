"""A changed module beside the untouched one: taking an adapter off is dropping the changed module.

Nothing is written into a weight, so a second adapter, another strength or none always starts from the very numbers of
the checkpoint, and a thread that draws keeps what it started with.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from latent_diffusion.adapters.forms import Update
from latent_diffusion.nn.shared_copy import shared_copy
from latent_diffusion.runtime.cpu.packing import unpack

__all__ = ["adapted", "changed_weight"]

M = TypeVar("M", bound=nn.Module)
Changes = Sequence[tuple[Mapping[str, Update], float]]


@torch.no_grad()
def adapted(module: M, changes: Changes) -> M:
    """Return a module with W + sum_i strength_i * change_i(W) for weights and biases; all others are shared.

    Every change starts from W, so their order has no meaning; strength 0 is no change in every form, DoRA included.
    Sums are formed in float32 on W's device and rounded once to W's dtype.

    Args:
        module: stays as it is.
        changes: for each adapter its updates by path below `module`, and its strength.
    """
    twin = shared_copy(module)
    for path in dict.fromkeys(path for updates, strength in changes if strength for path in updates):
        of_layer = [(updates[path], strength) for updates, strength in changes if strength and path in updates]
        layer = twin.get_submodule(path)
        unpack(layer)
        for name in ("weight", "bias"):
            tensor = getattr(layer, name, None)
            if any(getattr(update, name) is not None for update, _ in of_layer):
                assert isinstance(tensor, nn.Parameter), "updates are checked against the layer when they are read"
                changed = _changed(tensor, of_layer, name)
                setattr(layer, name, nn.Parameter(changed, requires_grad=tensor.requires_grad))
    return twin


def changed_weight(weight: Tensor, update: Update) -> Tensor:
    """Return `weight` with one change, as `adapted` makes it."""
    return _changed(weight, [(update, 1.0)], "weight")


def _changed(tensor: Tensor, of_layer: Sequence[tuple[Update, float]], name: str) -> Tensor:
    start = tensor.float()
    total = start.clone()
    for update, strength in of_layer:
        change = update.bias if name == "bias" else update.weight
        if change is None:
            continue
        if isinstance(change, Tensor):
            total += strength * change.to(start.device, torch.float32).reshape(start.shape)
        else:
            total += strength * change.matrix(start.reshape(len(start), -1)).reshape(start.shape)
    return total.to(tensor.dtype)
