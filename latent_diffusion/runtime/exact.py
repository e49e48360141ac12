"""float32 that is float32: on recent GPUs torch rounds the inputs of convolutions to 10 bits (TF32) unless told not to."""

import torch

__all__ = ["exact_float32"]


def exact_float32() -> None:
    """Let cuDNN's convolutions of float32 tensors compute in float32, for the whole process.

    Matrix products do so already. Without it one picture differs between a GPU and a CPU by far more than rounding.
    """
    # torch has an old and a new switch, and reading one raises once only the other was set: so the new one for both kinds
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
