"""Where picture files lie: a folder, or a .zip of one, read in place.

Both answer the same two questions (which files, and the bytes of one), and neither ever opens anything outside its
root: no absolute name, no "..", no link that leaves.
"""

import os
import stat
import threading
import zipfile
from pathlib import Path, PurePosixPath
from typing import Protocol

from latent_diffusion.data.places.stalled import READ_TIMEOUT, read_each_within, read_within
from latent_diffusion.errors import DataError

__all__ = ["MAX_BYTES", "Files", "FolderFiles", "ZipFiles", "check_bytes", "open_files"]

MAX_BYTES = 2**29
"""Largest file that is read, unpacked; the largest picture by default, 64 MP, takes half of it without compression."""


class Files(Protocol):
    """A set of named files; names are POSIX paths relative to the root."""

    def names(self) -> list[str]:
        """Return the names of all files, sorted; companions that a desktop put there are left out."""
        ...

    def read(self, name: str) -> bytes:
        """Return the bytes of one file.

        Raises:
            DataError: absent, unreadable, not a regular file, or outside the root.
        """
        ...


def open_files(path: str | os.PathLike[str], seconds: float | None = None) -> Files:
    """Return the folder or the .zip archive at `path`.

    Args:
        path: of the folder or archive.
        seconds: longest wait for one file; None: `READ_TIMEOUT`.

    Raises:
        DataError: neither a folder nor a zip archive, or nothing came within `seconds`.
    """
    seconds = READ_TIMEOUT if seconds is None else seconds
    if "://" in str(path):
        raise DataError(f"data path {str(path)!r}: a URL must name tars, or hf://datasets/OWNER/NAME")
    return read_within(seconds, str(path), lambda: _opened(Path(path), seconds))


def _opened(path: Path, seconds: float) -> Files:
    if path.is_dir():
        return FolderFiles(path, seconds)
    if not path.exists():
        raise DataError(
            f"data path {str(path)!r} does not exist; give an image folder or a .zip of one, or hf://datasets/OWNER/NAME"
        )
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise DataError(
            f"data path {str(path)!r} is neither a folder nor a zip archive; give an image folder or a .zip of one"
        )
    return ZipFiles(path, seconds)


def check_bytes(size: int, name: str) -> None:
    """Refuse a file of more than `MAX_BYTES` before it is read or unpacked.

    Raises:
        DataError: too large; `name` is what the error calls it.
    """
    if size > MAX_BYTES:
        raise DataError(
            f"{name!r}: {size} bytes, but at most {MAX_BYTES} are read; it is not an ordinary picture or table"
        )


def _inside(name: str, where: str) -> str:
    """Return `name` normalised, refusing what could lead out of the root."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith(("/", "\\")) or ".." in parts or "\0" in name or (parts and parts[0].endswith(":")):
        raise DataError(f"{where}: file name {name!r} leads out of the data set")
    return "/".join(parts)


def _of_a_desktop(name: str) -> bool:
    """Whether a file is one that a desktop adds to the user's own, as macOS does in archives and on foreign disks."""
    *folders, file = name.split("/")
    return "__MACOSX" in folders or file.startswith("._") or file in (".DS_Store", "Thumbs.db", "desktop.ini")


def _hub_blobs(root: Path) -> Path | None:
    """Return the folder that the links of a snapshot in the hub's cache lead to; None where `root` is in none."""
    for folder in (root, *root.parents):
        if folder.parent.name == "snapshots" and (blobs := folder.parent.parent / "blobs").is_dir():
            return blobs
    return None


class FolderFiles:
    """Files below a folder."""

    def __init__(self, root: Path, seconds: float) -> None:
        self.root, self._seconds = root, seconds
        self._real = root.resolve()
        self._blobs = _hub_blobs(self._real)

    def names(self) -> list[str]:
        """Return the names of all files below the folder, sorted; links to folders are not followed."""
        found: list[str] = []

        def refuse(error: OSError) -> None:
            raise DataError(f"{error.filename!r}: cannot be listed: {error.strerror}") from error

        walk = os.walk(self.root, onerror=refuse)
        for folder, _, files in read_each_within(self._seconds, str(self.root), walk):
            found += [(Path(folder) / file).relative_to(self.root).as_posix() for file in files]
        return sorted(name for name in found if not _of_a_desktop(name))

    def read(self, name: str) -> bytes:
        """Return the bytes of one regular file that lies, links followed, below the root."""
        path = self.root / _inside(name, str(self.root))
        return read_within(self._seconds, str(path), lambda: self._content(path))

    def _content(self, path: Path) -> bytes:
        try:
            real = path.resolve(strict=True)
            if not real.is_relative_to(self._real) and (self._blobs is None or real.parent != self._blobs):
                raise DataError(f"{str(path)!r}: is a link to a file outside the data set")
            if not stat.S_ISREG(real.stat().st_mode):
                raise DataError(f"{str(path)!r}: not a regular file")
            check_bytes(real.stat().st_size, str(path))
            return real.read_bytes()
        except DataError:
            raise
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links on older Pythons
            why = getattr(error, "strerror", None) or str(error)
            raise DataError(f"{str(path)!r}: cannot be read: {why}") from error


class ZipFiles:
    """Members of a zip archive; an archive with one top folder and nothing beside it counts as that folder."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self._seconds = path, seconds
        self._handle: zipfile.ZipFile | None = None
        self._process = -1
        self._lock = threading.Lock()
        infos = self._open().infolist()
        for info in infos:
            _inside(info.filename, str(path))
            if stat.S_ISLNK(info.external_attr >> 16):
                raise DataError(
                    f"{str(path)!r}: member {info.filename!r} is a link; archives may hold plain files only"
                )
        files = [_inside(info.filename, str(path)) for info in infos if not info.is_dir()]
        files = [name for name in files if not _of_a_desktop(name)]
        if len(set(files)) != len(files):
            twice = next(name for name in files if files.count(name) > 1)
            raise DataError(f"{str(path)!r}: member {twice!r} appears twice")
        tops = {name.split("/")[0] for name in files}
        self._prefix = f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in files) else ""
        self._names = sorted(name.removeprefix(self._prefix) for name in files)

    def _open(self) -> zipfile.ZipFile:
        """Return this process's own handle: a forked process must not share a file offset."""
        if self._handle is None or self._process != os.getpid():
            try:
                self._handle, self._process = zipfile.ZipFile(self.path), os.getpid()
            except (OSError, zipfile.BadZipFile) as error:
                raise DataError(f"{str(self.path)!r}: damaged archive: {error}") from error
        return self._handle

    def names(self) -> list[str]:
        """Return the names of all members, sorted."""
        return list(self._names)

    def read(self, name: str) -> bytes:
        """Return the bytes of one member; its checksum is verified."""
        return read_within(self._seconds, str(self.path / name), lambda: self._content(name))

    def _content(self, name: str) -> bytes:
        member = self._prefix + _inside(name, str(self.path))
        try:
            with self._lock:
                archive = self._open()
                size = archive.getinfo(member).file_size
                check_bytes(size, str(self.path / name))
                with archive.open(member) as stream:
                    return stream.read(size)  # never more than announced, whatever the member unpacks to
        except DataError:
            raise
        except KeyError as error:
            raise DataError(f"{str(self.path / name)!r}: no such member in the archive") from error
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
            raise DataError(f"{str(self.path / name)!r}: cannot be read from the archive: {error}") from error
        except Exception as error:  # zlib.error: damaged deflate stream
            raise DataError(f"{str(self.path / name)!r}: damaged in the archive: {error}") from error
