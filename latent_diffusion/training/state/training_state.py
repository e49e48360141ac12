"""Checkpoints of a training run that survive a kill at any moment.

    checkpoints/step-00001000/   <player>.safetensors, <player>.optimizer.safetensors, ema.safetensors,
                                 state.json, manifest.json (bytes and sha256 of every other file)

A checkpoint is written under a temporary name, every file is flushed to the disk, the manifest last; then one rename
publishes it, and only then are older ones removed. So a folder named `step-...` is complete, and still the reader
checks every byte: it uses the newest intact one, names those it skipped, and never starts afresh silently.
Tensors are safetensors, the rest is JSON: reading a checkpoint runs no code.
"""

import errno
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_diffusion.checkpoint.files.atomic import TEMPORARY, publish
from latent_diffusion.checkpoint.files.json_file import write_json
from latent_diffusion.checkpoint.files.safetensors_file import read_tensors, write_tensors
from latent_diffusion.errors import CheckpointError, DivergedError, ResourceError

__all__ = ["TrainingState", "newest_state", "save_state", "set_aside_newer"]

logger = logging.getLogger(__name__)

FORMAT = 1
"""Number of this layout, in `state.json`."""


@dataclass(frozen=True)
class TrainingState:
    """A sound checkpoint on the disk.

    Attributes:
        folder: `checkpoints/step-00001000`.
        step: finished updates.
        values: what `save_state` was given (`state.json`).
    """

    folder: Path
    step: int
    values: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors saved as `name`; {} when it was saved empty.

        Raises:
            CheckpointError: no such file, or it is damaged.
        """
        if name in self.values["empty"]:
            return {}
        return read_tensors(self.folder / f"{name}.safetensors")


def save_state(
    root: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], values: Mapping[str, Any], *, keep: int
) -> Path:
    """Write `root/step-<step>` and then remove all but the newest `keep` checkpoints.

    Args:
        root: the `checkpoints` folder; made when absent.
        step: finished updates.
        tensors: file name (without suffix) -> tensors.
        values: anything JSON holds.
        keep: sound checkpoints that stay.

    Raises:
        DivergedError: a tensor is not finite; nothing was written.
        ResourceError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    _refuse_non_finite(step, tensors)
    target = root / f"step-{step:08d}"
    temporary = root / f"{TEMPORARY}{target.name}"
    needed = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
    empty = sorted(name for name, group in tensors.items() if not group)
    try:
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for name, group in tensors.items():
            if group:
                write_tensors(temporary / f"{name}.safetensors", dict(group), {"format": "pt"})
        write_json(temporary / "state.json", {"format": FORMAT, "step": step, "empty": empty, **values})
        files = {path.name: _fingerprint(path) for path in sorted(temporary.iterdir())}
        write_json(temporary / "manifest.json", {"format": FORMAT, "files": files})
        publish(temporary, target)
    except (OSError, CheckpointError) as fault:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _cannot_write(target, fault, needed) from fault
    _prune(root, keep)
    return target


def newest_state(root: Path) -> TrainingState | None:
    """Return the newest sound checkpoint of `root` by its number of updates, or None when none was ever published.

    Raises:
        CheckpointError: there are checkpoints but none is sound, or one is of a newer format.
    """
    folders = _published(root)
    for folder in folders:
        fault = _fault(folder)
        if fault is None:
            values = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            return TrainingState(folder, int(values["step"]), values)
        logger.warning("%s is damaged (%s): an older checkpoint is used", folder, fault)
    if folders:
        raise CheckpointError(
            f"{root}: none of its {len(folders)} checkpoints is intact (see the warnings above); restore one from a "
            f"backup, or remove the folder to start afresh"
        )
    return None


def set_aside_newer(root: Path, state: TrainingState | None) -> None:
    """Rename damaged checkpoints newer than `state` to `damaged-...`: pruning must not count them as the newest."""
    for folder in _published(root):
        if state is None or folder == state.folder:
            return
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)


def _published(root: Path) -> list[Path]:
    """Return the checkpoint folders, newest first by their number, not by a clock."""
    numbered = []
    for path in root.glob("step-*"):
        number = path.name.removeprefix("step-")
        if path.is_dir() and number.isdecimal():
            numbered.append((int(number), path))
    return [path for _, path in sorted(numbered, reverse=True)]


def _fault(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, in words, or None."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] > FORMAT:
            raise CheckpointError(
                f"{folder}: format {manifest['format']} is newer than this package's {FORMAT}; update"
            )
        if "state.json" not in manifest["files"]:
            return "manifest.json does not list state.json"
        for name, expected in manifest["files"].items():
            path = folder / Path(name).name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, {expected['bytes']} were written"
            if _fingerprint(path) != expected:
                return f"{name} does not have the sha256 it was written with"
    except OSError as fault:
        return f"{Path(fault.filename or folder).name}: {fault.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        if isinstance(fault, CheckpointError):
            raise
        return f"manifest.json cannot be read: {type(fault).__name__}"
    return None


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _refuse_non_finite(step: int, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Check every tensor, with one wait for the device."""
    names = [(file, name) for file, group in tensors.items() for name in group]
    if not names:
        return
    finite = torch.stack([torch.isfinite(tensors[file][name]).all().cpu() for file, name in names])
    if not finite.all():
        file, name = names[int(finite.logical_not().nonzero()[0])]
        raise DivergedError(f"after update {step} {file} holds a NaN or infinity in {name}; no checkpoint was written")


def _prune(root: Path, keep: int) -> None:
    for folder in _published(root)[keep:]:
        # out of the reader's sight in one step, so that a kill half-way leaves no damaged checkpoint
        aside = folder.with_name(f"{TEMPORARY}old-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _cannot_write(target: Path, fault: Exception, needed: int) -> ResourceError:
    # `write_tensors` has put the disk's own error into words; it stands behind its ResourceError
    cause = fault.__cause__ if isinstance(fault, ResourceError) else fault
    reason = getattr(cause, "strerror", None) or str(fault)
    try:
        free = f"{shutil.disk_usage(target.parent).free / 2**20:.0f} MiB free"
    except OSError:
        free = "free space unknown"
    full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = "free some space" if full else "make the folder writable"
    return ResourceError(
        f"{target}: the checkpoint cannot be written ({reason}; {needed / 2**20:.0f} MiB needed, {free}); earlier "
        f"checkpoints are untouched; {advice} and run again to continue"
    )
