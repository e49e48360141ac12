"""A digest of weights, so that a resumed run notices when a frozen part or its starting point was exchanged."""

import hashlib

import torch
from torch import nn

__all__ = ["weights_digest"]


def weights_digest(*modules: nn.Module) -> str:
    """Return the digest of all tensors of `modules`, their names, shapes and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
