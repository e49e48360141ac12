"""float32 that is float32: by default torch lets cuDNN round the inputs of convolutions to 10 bits (TF32)."""

import torch

__all__ = ["exact_float32"]


def exact_float32() -> None:
    """Let cuDNN's convolutions of float32 tensors compute in float32, for the whole process.

    Matrix products do so already. Without it one picture differs between a GPU and a CPU by far more than rounding.
    """
    # the old switch sets the new ones too; after setting only the new ones, torch refuses to read the old one
    torch.backends.cudnn.allow_tf32 = False
