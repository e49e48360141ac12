"""Files and folders that are there whole or not at all, whatever happens while they are written.

Everything is written under a temporary name beside its place, flushed to the disk, and then renamed: a reader sees the
old or the new one, and so does whoever looks after a power cut (a rename lasts once its folder is flushed too).
"""

import contextlib
import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

__all__ = ["TEMPORARY", "moved_aside", "publish", "replacing", "replacing_folder", "sweep"]

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


@contextlib.contextmanager
def replacing_folder(target: Path, kept: Callable[[Path], Iterable[Path]]) -> Iterator[Path]:
    """Give a new folder to write to; when the block ends well, it takes the place of `target`.

    What `kept` returns of an older folder's entries is in the new one too, files as hard links where the disk has them.

    Raises:
        OSError: the disk is full or the folder cannot be written; an older `target` is as it was.
    """
    target = Path(os.path.realpath(target))
    temporary = target.with_name(f"{TEMPORARY}{target.name}")
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
    fixed = target.is_dir() and _stays(target)
    if fixed:
        if len(list(kept(target))) < len(os.listdir(target)):
            raise OSError("it cannot be replaced in one step: it is a mount point or holds the working folder")
        temporary = target / temporary.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        if fixed:
            for path in sorted(temporary.iterdir(), key=os.path.isfile):
                path.rename(target / path.name)
            temporary.rmdir()
            return
        if target.is_dir():
            for path in kept(target):
                _link(path, temporary / path.name)
            shutil.copymode(target, temporary)
        publish(temporary, target)
    except BaseException:  # Ctrl-C too leaves nothing behind
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _stays(folder: Path) -> bool:
    """Whether another folder cannot take this one's place: a mount point, or one that a process works in."""
    return os.path.ismount(folder) or folder in (here := Path.cwd().resolve(), *here.parents)


def _link(source: Path, target: Path) -> None:
    """Put a file or a folder at a second place without a second copy of its bytes, where the disk can."""
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, copy_function=_link_file)
    else:
        _link_file(source, target)


def _link_file(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a disk without hard links
        shutil.copy2(source, target, follow_symlinks=False)


def publish(temporary: Path, target: Path) -> None:
    """Give a finished folder its final name in one rename; an older `target` gives way in that same call.

    Where the system cannot exchange two names in one call, the older one is moved aside first and removed afterwards.
    """
    _flush(temporary)
    if not target.exists():
        temporary.rename(target)
    elif not _exchange(temporary, target):
        aside = moved_aside(target)
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
        try:
            temporary.rename(target)
        except BaseException:
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    _flush(target.parent)
    shutil.rmtree(temporary, ignore_errors=True)  # after an exchange this is the older one


def moved_aside(target: Path) -> Path:
    """Return where `publish` keeps the older folder while it has no name, on systems that cannot exchange two names."""
    return target.with_name(f"{TEMPORARY}old-{target.name}")


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one call; return False where the system or the disk cannot.

    Reference: Linux, renameat2(2) with RENAME_EXCHANGE.
    """
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # another system than Linux, or an old C library
        return False
    if call(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return True
    if (code := ctypes.get_errno()) in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(other))


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
