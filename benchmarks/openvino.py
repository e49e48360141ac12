"""OpenVINO, the fastest other way on CPUs: a network traced, converted to its own form, compiled for one size.

In 8 bits: weights and activations, by NNCF's quantisation after training, with its settings for transformers. Its
ranges come from the very inputs that are timed, so the error it shows is the least it can have.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.plan import AbsentError, Plan
from latent_diffusion.training.clock import timed

__all__ = ["Converted", "converted"]

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Converted:
    """A network as OpenVINO runs it."""

    request: Any
    dtype: torch.dtype  # what it computes in

    def __call__(self, *tensors: Tensor | None) -> Tensor:
        """Map tensors of the sizes it was made for to a float32 tensor; None is passed over."""
        self.request.infer([x.detach().numpy() for x in tensors if x is not None], share_inputs=True)
        return torch.from_numpy(self.request.get_output_tensor(0).data.copy())


def converted(
    module: nn.Module, inputs: Sequence[Tensor], plan: Plan, seconds: dict[str, float], *, eight_bits: bool = False
) -> Converted:
    """Convert and compile a module that has one output, and note the seconds of both.

    Args:
        module: float32, on the CPU.
        inputs: an example, with the sizes it will have.
        plan: says the number format; "auto" is OpenVINO's own choice.
        seconds: gets "convert" and "compile", and with `eight_bits` "quantise".
        eight_bits: compute products with 8 bits, and the rest in the number format.

    Raises:
        AbsentError: OpenVINO or NNCF is not installed, or the device is none of its.
    """
    if plan.device != "cpu":
        raise AbsentError("openvino: measured on CPUs only")
    try:
        openvino = import_module("openvino")  # by name: a type checker takes `import openvino` for this very file
    except ImportError:
        raise AbsentError("openvino is not installed; `pip install openvino`") from None
    with timed(seconds, "convert"), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about sizes that become constants: as they should
        shapes: Any = [tuple(x.shape) for x in inputs]
        model = openvino.convert_model(module.eval(), example_input=tuple(inputs), input=shapes)
    if eight_bits:
        with timed(seconds, "quantise"):
            model = _in_eight_bits(model, inputs)
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    if plan.dtype in PRECISIONS:
        options["INFERENCE_PRECISION_HINT"] = PRECISIONS[plan.dtype]
    with timed(seconds, "compile"):
        network = openvino.Core().compile_model(model, "CPU", options)
    half = "bf" in str(network.get_property("INFERENCE_PRECISION_HINT"))
    return Converted(network.create_infer_request(), torch.bfloat16 if half else torch.float32)


def _in_eight_bits(model: Any, inputs: Sequence[Tensor]) -> Any:
    try:
        nncf = import_module("nncf")
    except ImportError:
        raise AbsentError("nncf is not installed; `pip install nncf`") from None
    examples = nncf.Dataset([tuple(x.detach().numpy() for x in inputs)])
    kind, mixed = nncf.ModelType.TRANSFORMER, nncf.QuantizationPreset.MIXED
    return nncf.quantize(model, examples, subset_size=1, model_type=kind, preset=mixed)
