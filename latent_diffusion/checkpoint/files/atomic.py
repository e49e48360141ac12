"""Files and folders that are there whole or not at all, whatever happens while they are written.

Everything is written under a temporary name beside its place, flushed to the disk, and then renamed: a reader sees the
old or the new one, and so does whoever looks after a power cut (a rename lasts once its folder is flushed too).
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

__all__ = ["TEMPORARY", "publish", "replacing", "sweep"]

TEMPORARY = ".tmp-"
"""How every name that does not count begins; swept at the next start."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; when the block ends well, the file there takes the place of `path`.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is as it was.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with open(temporary, "wb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)  # what the user's umask allows
        yield temporary
        with open(temporary, "rb+") as file:
            os.fchmod(file.fileno(), mode)  # libraries make files private
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def publish(temporary: Path, target: Path) -> None:
    """Give a finished folder its final name in one rename; an older `target` is moved aside first, then removed."""
    _flush(temporary)
    aside = target.with_name(f"{TEMPORARY}old-{target.name}")
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    temporary.rename(target)
    _flush(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written directly in `folder`."""
    if folder.is_dir():
        for path in folder.glob(f"{TEMPORARY}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _flush(folder: Path) -> None:
    """Make the names in `folder` last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
