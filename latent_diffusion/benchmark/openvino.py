"""OpenVINO, the fastest other way on CPUs: a network traced, converted to its own form, compiled for one size."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latent_diffusion.benchmark.clock import clocked
from latent_diffusion.benchmark.plan import AbsentError, Plan

__all__ = ["converted", "precision_of"]

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def converted(
    module: nn.Module, inputs: Sequence[Tensor | None], plan: Plan, seconds: dict[str, float]
) -> Callable[..., Tensor]:
    """Return `module` as OpenVINO runs it: tensors in, one float32 tensor out; notes the seconds of both passes.

    Args:
        module: float32, on the CPU.
        inputs: an example; those that are None are no inputs. The result takes the same ones, in these shapes.
        plan: says the number format; "auto" is OpenVINO's own choice.
        seconds: gets "convert" and "compile".

    Raises:
        AbsentError: OpenVINO is not installed, or the device is none of its.
    """
    if plan.device != "cpu":
        raise AbsentError("openvino: measured on CPUs only")
    try:
        import openvino
    except ImportError:
        raise AbsentError("openvino is not installed; `pip install openvino`") from None
    given = [x for x in inputs if x is not None]
    with clocked(seconds, "convert"), torch.no_grad():
        shapes: Any = [tuple(x.shape) for x in given]
        model = openvino.convert_model(module.eval(), example_input=tuple(given), input=shapes)
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    if plan.dtype in PRECISIONS:
        options["INFERENCE_PRECISION_HINT"] = PRECISIONS[plan.dtype]
    with clocked(seconds, "compile"):
        network = openvino.Core().compile_model(model, "CPU", options)
    request = network.create_infer_request()

    def run(*tensors: Tensor | None) -> Tensor:
        given = [x.detach().numpy() for x in tensors if x is not None]
        request.infer(given, share_inputs=True)
        return torch.from_numpy(request.get_output_tensor(0).data.copy())

    run.precision = str(network.get_property("INFERENCE_PRECISION_HINT"))
    return run


def precision_of(run: Any) -> torch.dtype:
    """Return what a converted network computes in."""
    return torch.bfloat16 if "bf16" in run.precision or "bfloat16" in run.precision else torch.float32
