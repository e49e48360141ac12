"""The others: diffusers as it comes, in its best plain setting, compiled, and converted to OpenVINO, also in 8 bits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.openvino import converted
from benchmarks.plan import AbsentError, Plan, Ready, half_or_full

__all__ = ["PEERS", "Twin", "build_peer", "check_peer", "compiled", "peer_dtype"]


PEERS = ("diffusers", "diffusers-best", "compile", "openvino", "openvino-int8")


@dataclass(frozen=True)
class Twin:
    """Diffusers' module with our weights: float32 tensors in, one tensor out."""

    module: nn.Module
    inputs: tuple[Tensor, ...]


def check_peer(tool: str) -> None:
    """Refuse what is none of `PEERS`.

    Raises:
        AbsentError: it is unknown, or a lossy way where there is only the exact one.
    """
    if tool not in PEERS:
        raise AbsentError(f"no tool {tool!r} does this")


def peer_dtype(plan: Plan, tool: str) -> torch.dtype:
    """Return what a peer computes in: as asked, else float32 for diffusers by itself, and the best for the others."""
    return plan.torch_dtype(torch.float32 if tool == "diffusers" else half_or_full(plan.device))


def build_peer(tool: str, plan: Plan, twin: Twin) -> Ready:
    """Return a peer ready to do one call of a network.

    `diffusers` is as `from_pretrained` leaves it; `diffusers-best` has channels_last beside it, which its documentation
    advises and which costs nothing; `compile` is that through torch.compile.

    Raises:
        AbsentError: the peer is not here.
    """
    check_peer(tool)
    if tool.startswith("openvino"):
        return _openvino(plan, twin, eight_bits=tool == "openvino-int8")
    dtype = peer_dtype(plan, tool)
    module = twin.module.to(plan.device, dtype)
    if tool != "diffusers":
        module = module.to(memory_format=torch.channels_last)
    work = compiled(module, plan) if tool == "compile" else module
    inputs = tuple(x.to(plan.device, dtype if x.is_floating_point() else None) for x in twin.inputs)

    @torch.no_grad()
    def call() -> Mapping[str, Tensor]:
        return {"output": work(*inputs)}

    return Ready(call, dtype)


def compiled(module: nn.Module, plan: Plan) -> nn.Module:
    """Return a module that is compiled at its first call; on CPUs with frozen weights, without which nothing is won."""
    if plan.device == "cpu":
        import torch._inductor.config as inductor

        inductor.freezing = True
    made: Any = torch.compile(module)
    return made


def _openvino(plan: Plan, twin: Twin, *, eight_bits: bool) -> Ready:
    seconds: dict[str, float] = {}
    run = converted(twin.module, twin.inputs, plan, seconds, eight_bits=eight_bits)
    inputs = twin.inputs
    return Ready(lambda: {"output": run(*inputs)}, run.dtype, seconds)
