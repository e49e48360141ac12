"""The folder of a run: one writer at a time, checked before any compute, and a `status.json` with its state.

checkpoints/  samples/  tensorboard/  wandb/  model/  best/  log.jsonl  config.json  status.json
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latent_diffusion.checkpoint.files.atomic import TEMPORARY, sweep
from latent_diffusion.checkpoint.files.json_file import write_json
from latent_diffusion.errors import ConfigError, ResourceError

__all__ = ["RunFolder", "holder"]

_OURS = {
    "checkpoints",
    "samples",
    "tensorboard",
    "wandb",
    "model",
    "model-unverified",
    "best",
    "log.jsonl",
    "config.json",
    "status.json",
    ".lock",
}


class RunFolder:
    """The output folder of a run, as the first process sees it."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.best = path / "best"
        self._status: dict[str, Any] = {}

    def finished_steps(self) -> int | None:
        """Return after how many updates the exported model was made, or None when there is none."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads((self.model / "training.json").read_text(encoding="utf-8"))["step"])
        return None

    def refuse_if_held(self) -> None:
        """Look at the lock without taking it.

        Raises:
            ResourceError: another run is working in the folder.
        """
        with contextlib.suppress(OSError):
            self._refuse(_parse((self.path / ".lock").read_text(encoding="utf-8")))

    def _refuse(self, holder: dict[str, Any] | None) -> None:
        if holder is not None and holder["pid"] != os.getpid() and _alive(holder):
            raise ResourceError(
                f"output: process {holder['pid']} on {holder['host']} is training in {self.path}; stop it, choose "
                f"another output, or remove {self.path / '.lock'} if that process is gone"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and hold it; what a killed run left half-written is removed, and a new folder left empty.

        Raises:
            ResourceError: the folder cannot be written, or another run is working in it (its process id is named).
            ConfigError: the folder has other things in it.
        """
        new, lock = not self.path.exists(), self.path / ".lock"
        self._make()
        self._take_lock()
        try:
            sweep(self.path)
            sweep(self.checkpoints)
            yield
        finally:
            with contextlib.suppress(OSError):
                if new and os.listdir(self.path) == [lock.name]:  # the run was refused before it wrote anything
                    lock.unlink()
                    self.path.rmdir()
                else:
                    lock.write_text("", encoding="utf-8")

    def check_space(self, checkpoint_bytes: int, keep: int, models: int = 1) -> None:
        """Refuse to start what the disk cannot hold: the checkpoints still to come, one more while saving, models.

        Raises:
            ResourceError: with the figures.
        """
        there = sum(f.stat().st_size for f in self.checkpoints.rglob("*") if f.is_file())
        needed = max(checkpoint_bytes * (keep + 1) - there, checkpoint_bytes) + models * checkpoint_bytes // 3
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise ResourceError(
                f"output: {self.path} has {free / 2**20:.0f} MiB free, the run needs {needed / 2**20:.0f} MiB "
                f"({keep} + 1 checkpoints of {checkpoint_bytes / 2**20:.0f} MiB and the model); free some space, "
                f"lower checkpoint.keep or choose another output"
            )

    def tell(self, **values: Any) -> None:
        """Update `status.json`: state (running, finished, interrupted, diverged, failed), step, exit_code, message."""
        self._status |= values
        fixed = {"pid": os.getpid(), "host": socket.gethostname(), "updated": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        with contextlib.suppress(OSError):  # on a full disk the exit code and the message still say it
            write_json(self.path / "status.json", {**self._status, **fixed})

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f"{TEMPORARY}probe"
            probe.write_bytes(b"\0" * 4096)
            probe.unlink()
        except OSError as fault:
            raise ResourceError(f"output: {self.path} cannot be written: {fault.strerror}; choose another") from None
        others = sorted(p.name for p in self.path.iterdir() if p.name not in _OURS and not p.name.startswith(TEMPORARY))
        if others and not self.checkpoints.exists() and not (self.path / "status.json").exists():
            raise ConfigError(
                f"output: {self.path} has other files ({', '.join(others[:3])}); choose a new or empty folder"
            )

    def _take_lock(self) -> None:
        me = {"pid": os.getpid(), "host": socket.gethostname(), "born": _born(os.getpid())}
        with (self.path / ".lock").open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # for the moment of looking and writing only: two may look at once
            file.seek(0)
            self._refuse(_parse(file.read()))
            file.truncate(0)
            file.write(json.dumps(me))


def holder(folder: Path) -> int | None:
    """Return the id of the process of this machine that trains in a run folder; None where none does."""
    with contextlib.suppress(OSError):
        found = _parse((folder / ".lock").read_text(encoding="utf-8", errors="replace"))
        if found is not None and found["host"] == socket.gethostname() and _alive(found):
            return found["pid"]
    return None


def _parse(text: str) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        values = json.loads(text)
        return {"pid": int(values["pid"]), "host": str(values["host"]), "born": str(values["born"])}
    return None


def _alive(holder: dict[str, Any]) -> bool:
    """Return whether the holder of a lock still runs; on another machine it is believed to."""
    if holder["host"] != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _born(holder["pid"]) == holder["born"]


def _born(pid: int) -> str:
    """Return the start time of a process in clock ticks since boot, "" where /proc is not: pids are used again."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    return ""
