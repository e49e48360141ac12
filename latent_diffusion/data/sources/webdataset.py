"""Tars in the format of webdataset: the files of one sample lie together and share the name up to the first dot.

    0001.jpg 0001.txt 0001.json 0001.mask.png     picture; `text`; more fields; mask

`path` is a tar, a folder of tars, a pattern such as `set-{000..127}.tar`, or the same as a URL, which fsspec reads. Of
every sample only its place is kept in memory, 8 bytes; its headers are read again when its turn comes.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self

import numpy as np

from latent_diffusion.data.pictures.formats import PICTURES
from latent_diffusion.data.places.files import check_bytes
from latent_diffusion.data.places.stalled import read_within
from latent_diffusion.data.rows.source import Source
from latent_diffusion.data.rows.table import Row, read_utf8
from latent_diffusion.data.settings import ReadingConfig
from latent_diffusion.errors import ConfigError, DataError

__all__ = ["WebdatasetSource"]

logger = logging.getLogger(__name__)

BLOCK = 512
AT_ONCE = 2**16  # bytes read around a header
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
TEXT = {"txt": "text"}  # ending -> field
REGULAR, LONG_NAME, PAX, LINKS, FOLDER = (b"0", b"\0", b"7"), b"L", b"x", (b"1", b"2"), b"5"
DESCRIBED = 100  # samples whose JSON says which fields there are


class Member(NamedTuple):
    """A file in a tar: its name, where its bytes begin, and how many there are."""

    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """What it shares with the other files of its sample."""
        folder, _, file = self.name.rpartition("/")
        return f"{folder}/{file.split('.', 1)[0]}"

    @property
    def ending(self) -> str:
        """The rest of its name, in lower case, without the dot."""
        return self.name.rpartition("/")[2].partition(".")[2].lower()


class Shard:
    """One tar, local or remote, of which any part can be read."""

    def __init__(self, name: str, seconds: float) -> None:
        """Open it; `seconds` is the longest wait for a read of it.

        Raises:
            DataError: it cannot be opened.
        """
        self.name, self._seconds = name, seconds
        try:
            self.size, self._read = read_within(seconds, name, lambda: _opened(name))
        except (OSError, ValueError, ImportError) as error:  # ImportError: the library of a kind of URL
            raise DataError(f"{name!r}: cannot be opened: {error}") from error

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`; fewer at the end.

        Raises:
            DataError: they cannot be read.
        """
        try:
            return read_within(self._seconds, self.name, lambda: self._read(offset, size))
        except OSError as error:
            raise DataError(f"{self.name!r}: byte {offset}: cannot be read: {error}") from error

    def members(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, Member]]:
        """Yield the files whose headers lie in [start, end), each with the place of its first header.

        Raises:
            DataError: a header is damaged, the tar ends within a file, or a name leads out.
        """
        end = self.size if end is None else end
        place, first, long_name, held, held_at = start, start, "", b"", 0
        while place < end:
            if not held_at <= place <= held_at + len(held) - BLOCK:
                held, held_at = self.read(place, max(BLOCK, min(AT_ONCE, end - place))), place
            head = held[place - held_at : place - held_at + BLOCK]
            if len(head) < BLOCK or (head[0] == 0 and not head.strip(b"\0")):
                if len(head) == BLOCK or start:
                    return
                raise self._damaged(place, f"ends after {self.size} bytes, inside a header")
            size, kind, name = self._header(head, place)
            offset = place + BLOCK
            if offset + size > self.size:
                raise self._damaged(place, f"{name!r} has {size} bytes, but the file ends after {self.size}")
            if kind == LONG_NAME:
                long_name = self.read(offset, size).rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif kind == PAX:
                long_name = _pax_path(self.read(offset, size)) or long_name
            elif kind in LINKS:
                raise self._damaged(place, f"{name!r} is a link; tars may hold plain files only")
            elif kind in REGULAR:
                name = (long_name or name).removeprefix("./")
                if name.startswith("/") or (".." in name and ".." in name.split("/")):
                    raise self._damaged(place, f"{name!r} leads out of the data set")
                yield first, Member(name, offset, size)
            place = offset + -(-size // BLOCK) * BLOCK
            if kind not in (LONG_NAME, PAX):
                first, long_name = place, ""

    def _header(self, head: bytes, place: int) -> tuple[int, bytes, str]:
        """Return size, kind and name of a header."""
        try:
            size = int.from_bytes(head[125:136], "big") if head[124] == 0x80 else int(head[124:136].strip(b" \0"), 8)
            if head[257:262] != b"ustar" and _checksum(head) != int(head[148:156].strip(b" \0"), 8):
                raise ValueError
        except ValueError as error:
            raise self._damaged(place, "no header of a tar is there") from error
        name, _, _ = head[:100].partition(b"\0")
        prefix, _, _ = head[345:500].partition(b"\0")
        if prefix and head[257:263] == b"ustar\0":
            name = prefix + b"/" + name
        return size, head[156:157], name.decode("utf-8", "surrogateescape")

    def _damaged(self, place: int, why: str) -> DataError:
        return DataError(f"{self.name!r}: byte {place}: {why}")


def _opened(name: str) -> tuple[int, Callable[[int, int], bytes]]:
    """Return the bytes of a file, and a function (offset, size) -> bytes; a URL is read by fsspec."""
    if "://" in name:
        import fsspec

        system, path = fsspec.core.url_to_fs(name)
        return int(system.size(path)), lambda offset, size: system.cat_file(path, start=offset, end=offset + size)
    handle = os.open(name, os.O_RDONLY)
    return os.fstat(handle).st_size, lambda offset, size: os.pread(handle, size, offset)


def _checksum(head: bytes) -> int:
    """Return the sum of a header's bytes, its own field counted as spaces."""
    return sum(head[:148]) + 256 + sum(head[156:])


def _pax_path(data: bytes) -> str:
    """Return the path among the records of a pax header, or ""."""
    found, rest = "", data
    while rest:
        length, _, _ = rest.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(rest):
            break
        record, rest = rest[len(length) + 1 : int(length) - 1], rest[int(length) :]
        key, _, value = record.partition(b"=")
        found = value.decode("utf-8", "surrogateescape") if key == b"path" else found
    return found


class WebdatasetSource(Source):
    """Sample k of all shards together, in order of their names."""

    words = "tars"
    reads = frozenset({"picture"})

    def __init__(self, path: str, names: list[str], config: ReadingConfig) -> None:
        """Read the headers of all shards.

        Raises:
            DataError: a shard is damaged, holds links or a sample twice, or no sample has a picture.
            ConfigError: a sample has several pictures, and none is named.
        """
        self.where = path
        picture = config.picture
        self._pictures = [picture.lstrip(".").lower()] if picture else [ending[1:] for ending in PICTURES]
        self._shards = [Shard(name, config.read_timeout) for name in names]
        self._endings: set[str] = set()
        places = [self._index(shard) for shard in self._shards]
        self._starts = np.cumsum([0, *map(len, places)])
        self._places = np.concatenate(places)
        if not len(self):
            held = sorted(self._endings)
            raise DataError(f"data set {path!r} has 0 pictures ({', '.join(self._pictures)}); its files end in {held}")
        described = {field for k in range(min(len(self), DESCRIBED)) for field in self.row(k)}
        self.fields = frozenset({*described, *(TEXT.get(ending, ending) for ending in self._endings - {"json"})})

    @classmethod
    def recognises(cls, path: str) -> bool:
        """Return whether it is a tar, a pattern of tars or a folder of tars."""
        try:
            return bool(shard_names(path))
        except ConfigError:
            return True

    @classmethod
    def open(cls, path: str, config: ReadingConfig) -> Self:
        """Return the samples of the tars at `path`."""
        names = shard_names(path)
        if not names:
            raise DataError(f"{path!r}: no tar, and no folder of tars")
        return cls(path, names, config)

    def _index(self, shard: Shard) -> np.ndarray:
        """Return where each sample that has a picture begins, (n,) int64."""
        places: list[int] = []
        keys: list[int] = []
        key, shown = None, "none yet"  # the ending of the sample's picture
        for place, member in shard.members():
            ending, own = member.ending, member.key
            self._endings.add(ending)
            if own != key:
                if not shown:
                    del places[-1]
                key, shown = own, ""
                places.append(place)
                keys.append(hash(key))
            if ending in self._pictures:
                if shown not in ("", ending):
                    raise ConfigError(
                        f"{shard.name!r}: {own.lstrip('/')!r} has several pictures ({shown}, {ending}); "
                        "name one in data.picture"
                    )
                shown = ending
        if not shown:
            del places[-1]
        if len(np.unique(np.array(keys, np.int64))) < len(keys):
            raise DataError(f"{shard.name!r}: {self._doubled(shard)!r} is there twice, with other samples between")
        if len(places) < len(keys):
            logger.warning("%s: %d samples have no picture and are left out", shard.name, len(keys) - len(places))
        return np.array(places, np.int64)

    @staticmethod
    def _doubled(shard: Shard) -> str:
        seen: set[str] = set()
        last = ""
        for _, member in shard.members():
            if member.key != last and member.key in seen:
                return member.key.lstrip("/")
            last = member.key
            seen.add(last)
        return ""

    def __len__(self) -> int:
        """Return the number of samples of all shards."""
        return int(self._starts[-1])

    def _members(self, k: int) -> tuple[Shard, dict[str, Member]]:
        """Return the shard of sample k, and its files by ending."""
        shard = self._shards[int(np.searchsorted(self._starts, k, side="right")) - 1]
        found: dict[str, Member] = {}
        key = None
        for _, member in shard.members(int(self._places[k])):
            if key is not None and member.key != key:
                break
            key = member.key
            if member.ending in found:
                raise DataError(f"{shard.name!r}: {member.name!r} is there twice")
            found[member.ending] = member
        return shard, found

    def _content(self, shard: Shard, member: Member) -> bytes:
        check_bytes(member.size, f"{shard.name}/{member.name}")
        return shard.read(member.offset, member.size)

    def row(self, k: int) -> Row:
        """Return the fields of its `.json`, its `.txt` as `text`, and other text files by their endings."""
        shard, found = self._members(k)
        row: Row = {"file_name": next(found[ending].name for ending in self._pictures if ending in found)}
        for ending, member in sorted(found.items(), key=lambda one: one[0] != "json"):  # files win over its fields
            place = f"{shard.name}/{member.name}"
            if ending == "json":
                row |= {name: value for name, value in self._object(shard, member).items() if name != "file_name"}
            elif ending in TEXT or ending in ("caption", "cls"):
                row[TEXT.get(ending, ending)] = read_utf8(self._content(shard, member), place).strip()
        return row

    def _object(self, shard: Shard, member: Member) -> dict[str, Any]:
        place = f"{shard.name}/{member.name}"
        try:
            value = json.loads(read_utf8(self._content(shard, member), place))
        except (ValueError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{place}: not JSON: {error}") from error
        if not isinstance(value, dict):
            raise DataError(f"{place}: must be a JSON object, found {type(value).__name__}")
        return value

    def read(self, k: int) -> bytes:
        """Return the picture of sample k."""
        shard, found = self._members(k)
        return self._content(shard, next(found[ending] for ending in self._pictures if ending in found))

    def mask(self, k: int) -> bytes | None:
        """Return the file with an ending such as `mask.png`."""
        shard, found = self._members(k)
        member = next((one for ending, one in found.items() if ending.startswith("mask.")), None)
        return None if member is None else self._content(shard, member)

    def identity(self) -> bytes:
        """Return a digest of names and sizes of the shards and of the places of their samples."""
        shards = "".join(f"{PurePosixPath(shard.name).name}\0{shard.size}\n" for shard in self._shards)
        return hashlib.blake2b(shards.encode() + self._places.tobytes(), digest_size=16).digest()


def shard_names(path: str) -> list[str]:
    """Return the tars that `path` names, sorted where it is a folder.

    Raises:
        ConfigError: compressed tars, in which no sample can be found without unpacking.
    """
    if path.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise ConfigError(f"{path!r}: a compressed tar has to be unpacked to find a sample; store it as plain .tar")
    if path.endswith(".tar"):
        return _expanded(path)
    root = Path(path)
    if "://" in path or not root.is_dir():
        return []
    return sorted(str(one) for one in root.glob("*.tar") if one.is_file() and not one.name.startswith("."))


def _expanded(pattern: str) -> list[str]:
    """Return the names of a pattern with `{000..127}`; leading zeros are kept."""
    found = RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    numbers = [str(k).zfill(width) for k in range(int(first), int(last) + 1)]
    return [name for k in numbers for name in _expanded(pattern[: found.start()] + k + pattern[found.end() :])]
