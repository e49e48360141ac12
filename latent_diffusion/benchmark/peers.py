"""The others: diffusers as it comes, in its best plain setting, compiled, and converted to OpenVINO."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latent_diffusion.benchmark.plan import AbsentError, Plan, Ready, half_or_full

__all__ = ["PEERS", "Twin"]


@dataclass(frozen=True)
class Twin:
    """Diffusers' module with our weights: float32 tensors in, one tensor out."""

    module: nn.Module
    inputs: tuple[Tensor, ...]


def _plain(plan: Plan, twin: Twin) -> Ready:
    """As `from_pretrained` leaves it, in the dtype asked for; by itself diffusers takes float32."""
    return _torch(plan, twin.module, twin.inputs, plan.torch_dtype(torch.float32))


def _best(plan: Plan, twin: Twin) -> Ready:
    """What its documentation advises and costs nothing: channels_last, and bfloat16 where nothing else is asked."""
    module = twin.module.to(memory_format=torch.channels_last)
    return _torch(plan, module, twin.inputs, plan.torch_dtype(half_or_full(plan.device)))


def _compiled(plan: Plan, twin: Twin) -> Ready:
    """The best plain setting through torch.compile; on CPUs with frozen weights, without which it gains nothing."""
    ready_dtype = plan.torch_dtype(half_or_full(plan.device))
    module = twin.module.to(device=plan.device, dtype=ready_dtype).to(memory_format=torch.channels_last)
    if plan.device == "cpu":
        import torch._inductor.config as inductor

        inductor.freezing = True
    return _torch(plan, torch.compile(module), twin.inputs, ready_dtype)


def _torch(plan: Plan, module: Callable[..., Tensor], inputs: tuple[Tensor, ...], dtype: torch.dtype) -> Ready:
    if isinstance(module, nn.Module):
        module = module.to(device=plan.device, dtype=dtype)
    placed = tuple(x.to(plan.device, dtype if x.is_floating_point() else None) for x in inputs)

    @torch.no_grad()
    def call() -> Mapping[str, Tensor]:
        return {"output": module(*placed)}

    return Ready(call, dtype)


def _openvino(plan: Plan, twin: Twin) -> Ready:
    raise AbsentError("openvino: not here yet")


PEERS: dict[str, Callable[[Plan, Twin], Ready]] = {
    "diffusers": _plain,
    "diffusers-best": _best,
    "compile": _compiled,
    "openvino": _openvino,
}
