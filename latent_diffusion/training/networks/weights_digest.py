"""A digest of weights, so that a resumed run notices when a frozen part or its starting point was exchanged."""

import hashlib

import torch
from torch import nn

from latent_diffusion.checkpoint.files.mapping import page_out

__all__ = ["weights_digest"]


def weights_digest(*modules: nn.Module, stay: bool = True) -> str:
    """Return the digest of all tensors of `modules`, their names, shapes and bytes.

    With `stay` false, weights that are mapped from a file leave memory as soon as they are read. This is for runs that
    compute with copies of them.
    """
    digest = hashlib.blake2b(digest_size=16)
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
            if not stay:
                page_out(tensor.untyped_storage().data_ptr())
    return digest.hexdigest()
