"""Tensors on disk by the hash of what they were made from, in safetensors shards that several runs share.

A shard is written under a temporary name and renamed, so a killed run leaves whole shards only, and the next run makes
what is missing. Every tensor has a checksum, and a damaged one counts as missing. The header of a shard is all that is
read when the cache is opened.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import struct
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latent_diffusion.data.settings import CacheConfig
from latent_diffusion.errors import ResourceError

__all__ = ["TensorCache", "key_of", "open_cache"]

logger = logging.getLogger(__name__)

SHARD = 2**28
"""Bytes after which a shard is written."""
AGE = 120.0
"""Seconds after which a shard is written, however small: what a killed run loses at most."""
TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.\d+")  # what a shard is called until it is whole
ABANDONED = 24 * 3600  # seconds without a change
MOST_HEADER = 100_000_000  # bytes


def key_of(*parts: str | bytes | int | float | tuple[int, ...]) -> str:
    """Return the hash of what decides a tensor."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


class TensorCache:
    """One folder of shards; a tensor is found by its key.

    Args:
        folder: made where it is absent.
        most: bytes that the folder may take; shards that were not used for longest go first, those of this run stay.

    Raises:
        ResourceError: the folder cannot be made or read.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        self._shards: dict[str, Path] = {}  # key -> shard
        self._read: set[Path] = set()
        self._open: dict[Path, tuple[safe_open, dict[str, str]]] = {}  # with its checksums, read once
        self._new: dict[str, Tensor] = {}
        self._held, self._flushed = 0, time.monotonic()
        self.damaged = 0
        """Tensors that were there, but not as they were written."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"data.cache: {folder}: {error.strerror}; choose another folder") from error
        self.look_again()

    def look_again(self) -> None:
        """Read the headers of shards that are new, as other processes write them."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path not in self._read:
                self._shards |= dict.fromkeys(_names(path), path)
                self._read.add(path)

    def __contains__(self, key: str) -> bool:
        return key in self._shards or key in self._new

    def get(self, key: str) -> Tensor | None:
        """Return a tensor on the CPU; None where it is absent or damaged."""
        if key in self._new:
            return self._new[key]
        path = self._shards.get(key)
        if path is None:
            return None
        try:
            if path not in self._open:
                opened = safe_open(path, "pt")
                self._open[path] = opened, opened.metadata() or {}
                with contextlib.suppress(OSError):
                    os.utime(path)  # used now
            file, sums = self._open[path]
            tensor, wanted = file.get_tensor(key), sums.get(key)
        except (SafetensorError, OSError) as error:
            logger.warning("%s: cannot be read (%s): what it held is made again", path, error)
            self._shards = {name: shard for name, shard in self._shards.items() if shard != path}
            return None
        if _checksum(tensor) != wanted:
            self.damaged += 1
            del self._shards[key]
            return None
        return tensor

    def put(self, key: str, tensor: Tensor) -> None:
        """Keep a tensor; it is on the disk after `flush`, or when a shard is full or two minutes old."""
        self._new[key] = tensor.detach().cpu().contiguous()
        self._held += tensor.numel() * tensor.element_size()
        if self._held >= SHARD or time.monotonic() - self._flushed >= AGE:
            self.flush()

    def flush(self) -> None:
        """Write what is new as one shard.

        Raises:
            ResourceError: the disk is full or not writable.
        """
        self._flushed = time.monotonic()
        if not self._new:
            return
        name = key_of(*sorted(self._new))
        temporary, path = self.folder / f".{name}.{os.getpid()}", self.folder / f"{name}.safetensors"
        sums = {key: _checksum(tensor) for key, tensor in self._new.items()}
        try:
            save_file(self._new, temporary, metadata=sums)
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise ResourceError(
                f"data.cache: {path}: cannot be written ({error}); free some space, or choose another folder"
            ) from error
        self._shards |= dict.fromkeys(self._new, path)
        self._read.add(path)
        self._open.pop(path, None)
        self._new, self._held = {}, 0

    def prune(self, used: Iterable[str]) -> None:
        """Remove the shards that were used longest ago until the folder takes at most `most` bytes; `used` stay."""
        mine = {self._shards[key] for key in used if key in self._shards}
        shards: list[tuple[int, int, Path]] = []
        for path in self._read:
            with contextlib.suppress(FileNotFoundError):  # another process prunes too
                facts = path.stat()
                shards.append((facts.st_mtime_ns, facts.st_size, path))
        shards.sort(reverse=True)
        total = sum(size for _, size, _ in shards)
        while total > self.most and shards:
            _, size, path = shards.pop()
            if path not in mine:
                total -= size
                self._open.pop(path, None)
                path.unlink(missing_ok=True)
                self._read.discard(path)
                self._shards = {key: shard for key, shard in self._shards.items() if shard != path}
        self._sweep()
        if total > self.most:
            logger.warning("data.cache: %s takes %.2f GB, all of which this run uses", self.folder, total / 1e9)

    def _sweep(self) -> None:
        """Remove what killed runs were writing; a younger file may be another's, which writes it now."""
        for path in self.folder.glob(".*.*"):
            if not TEMPORARY.fullmatch(path.name):  # no file of a cache
                continue
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - ABANDONED:
                    path.unlink()


def open_cache(config: CacheConfig | None) -> TensorCache | None:
    """Return the cache of a run; None where none is wanted."""
    return None if config is None else TensorCache(Path(config.folder), int(config.gigabytes * 1e9))


def _names(path: Path) -> list[str]:
    """Return the names of a shard's tensors; [] where its header is damaged."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length <= MOST_HEADER else {}
        return [name for name in header if name != "__metadata__"]
    except FileNotFoundError:  # another process pruned it
        return []
    except (OSError, ValueError, struct.error):
        logger.warning("%s: damaged: what it held is made again", path)
        return []


def _checksum(tensor: Tensor) -> str:
    facts = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    data = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.blake2b(data.tobytes(), digest_size=8, key=facts[:64]).hexdigest()
