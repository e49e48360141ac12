"""A single file of any format: its tensors by name, and its metadata.

What a file is follows from its first bytes, not from its name; a pickle is read only where the name admits it is one,
and then through the one safe door.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from latent_diffusion.checkpoint.files.pickle_file import SUFFIXES, is_pickle, open_pickle
from latent_diffusion.checkpoint.files.safetensors_file import open_file
from latent_diffusion.checkpoint.files.weights import Stored

__all__ = ["CheckpointFile", "open_checkpoint"]


@dataclass(frozen=True)
class CheckpointFile:
    """An open file of weights."""

    source: Path
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str] = field(default_factory=dict)  # of a safetensors header
    step: int | None = None  # training steps stored in a `.ckpt`


def open_checkpoint(path: Path) -> CheckpointFile:
    """Open a `.safetensors` or an old `.ckpt`; no code in it is ever run.

    Raises:
        CheckpointError: the file is missing, damaged, or holds what is no weight.
    """
    if path.suffix.lower() in SUFFIXES and is_pickle(path):
        tensors, step = open_pickle(path)
        return CheckpointFile(path, tensors, step=step)
    tensors, metadata = open_file(path)
    return CheckpointFile(path, tensors, metadata)
