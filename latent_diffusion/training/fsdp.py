"""Fully sharded training (FSDP2): of W processes each holds 1/W of the weights, of their gradients and moments.

The weights of a unit (a residual block, a feed-forward layer, a self-attention) are gathered before it computes and
dropped after; its gradient is averaged over the processes and split at once. All other weights form the root's unit,
which is whole from the beginning of a forward pass to the end of backward: keys and values of the cross-attentions
are computed outside of their blocks. Checkpoints and results have whole tensors, as those of one process.
Reference: Zhao et al. 2023, arXiv:2304.11277.
"""

import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from latent_diffusion.config import RunConfig
from latent_diffusion.errors import ConfigError
from latent_diffusion.nn.resnet import ResnetBlock
from latent_diffusion.nn.transformer import FeedForward, TransformerBlock

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs

    from latent_diffusion.training.objective import Objective

__all__ = ["check_sharding", "distributed", "fill", "gathered", "is_asked", "is_sharded", "on_first", "whole"]

ELEMENTWISE = ("adamw",)
"""Optimizers that update each number from its own gradient and moments alone, so that a part of a tensor is enough."""


def is_asked() -> bool:
    """Return whether the launcher was asked for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes")


def check_sharding(objective: "Objective", run: RunConfig, processes: int) -> None:
    """Refuse what does not go with FSDP; nothing where it is not asked for.

    Raises:
        ConfigError: the option, the reason and what to do.
    """
    if not is_asked():
        return
    offload = os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() == "true"
    optimizer = run.optimizer.get("name", "adamw")
    players = objective.players.values()
    ends = any(player.ends() for player in players)
    text = any(name.startswith("text_encoder") for player in players for name, _ in player.named_children())
    refused = {
        "fsdp_version 1: weights are flattened together with frozen ones; set fsdp_version: 2": (
            os.environ.get("FSDP_VERSION", "1") != "2"
        ),
        "one process: there is nothing to share; launch several, or without FSDP": processes == 1,
        "fsdp_offload_params: not implemented; set it to false": offload,
        f"objective {run.objective['name']!r}: only the U-Net of objective 'unet' is sharded; launch without FSDP, and "
        "for an adapter set memory.base": not objective.shards,
        "trained text encoders: they are not sharded; leave them out of objective.train": text,
        f"optimizer {optimizer!r}: it needs whole tensors; use {', '.join(ELEMENTWISE)}": optimizer not in ELEMENTWISE,
        "objective.train.rules with `ends`: what is sharded cannot be frozen later; leave it out": ends,
    }
    for reason, holds in refused.items():
        if holds:
            raise ConfigError(f"launched for FSDP, which does not go with {reason}")


def distributed(accelerator: "Accelerator", player: nn.Module) -> nn.Module:
    """Return the player as it trains with other processes: in accelerate's wrapper, or sharded in place."""
    if not is_asked():
        return accelerator.prepare_model(player)
    for parameter in player.parameters():  # a part of a tensor is a run of its rows
        parameter.data = parameter.data.contiguous()
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # an output that is a view must not be changed in place; blocks add theirs to new tensors
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    again = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"
    for unit in _units(player):
        fully_shard(unit, mesh=mesh, reshard_after_forward=again)
    fully_shard(player, mesh=mesh, reshard_after_forward=False)
    return player


def _units(player: nn.Module) -> Iterator[nn.Module]:
    for module in player.modules():
        if isinstance(module, ResnetBlock | FeedForward):
            yield module
        elif isinstance(module, TransformerBlock):
            yield module.attn1


@contextmanager
def gathered(modules: Collection[nn.Module]) -> Iterator[None]:
    """Hold all weights whole, on every process, to compute and to read them outside of training."""
    if not is_asked():
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    units = [unit for module in modules for unit in module.modules() if isinstance(unit, FSDPModule)]
    saved = [network for module in modules for network in module.children()]
    for network in saved:  # torch's own would take the parts again
        vars(network)["state_dict"] = partial(_parameters, network)
    for unit in units:
        unit.unshard()
        unit.set_reshard_after_forward(False, recurse=False)  # else processes would wait for each other in every call
    try:
        yield
    finally:
        for network in saved:
            del vars(network)["state_dict"]
        for root, unit in enumerate(units):
            unit.set_reshard_after_forward(root > 0, recurse=False)
            unit.reshard()


def _parameters(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def is_sharded(tensor: Tensor) -> "TypeIs[DTensor]":
    """Return whether a process has a part of the tensor; without an import of torch's sharding, which takes .6 s."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may be sharded; all processes must take part."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def on_first(groups: Mapping[str, Mapping[str, Tensor]], *, first: bool) -> dict[str, dict[str, Tensor]]:
    """Return tensors whole, sharded ones on the host, to the first process; to others none. All must take part."""
    made: dict[str, dict[str, Tensor]] = {name: {} for name in groups}
    for name, group in groups.items():
        for key, tensor in group.items():
            found = whole(tensor)
            if first:
                made[name][key] = found.cpu() if is_sharded(tensor) else found
    return made


@torch.no_grad()
def fill(tensor: Tensor, values: Tensor) -> Tensor:
    """Copy whole `values` into a tensor that may be sharded; return it."""
    if is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        values = distribute_tensor(values.to(tensor.device, tensor.dtype), tensor.device_mesh, tensor.placements)
    return tensor.copy_(values)
