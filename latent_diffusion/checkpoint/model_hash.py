"""Names for the weights of a model: a digest that is the same wherever they lie.

Of a single file it is the sha256 of the file, whose first 10 hex digits are the A1111 web UI's "Model hash". Of a
folder it is the sha256 of one line "<sha256>  <path>" for each .safetensors file, by path, as `sha256sum` writes them.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from latent_diffusion.errors import CheckpointError

__all__ = ["SHORT", "model_hash"]

SHORT = 10  # hex digits that the A1111 web UI shows
WORTH_KEEPING = 2**28  # bytes; the digest of less is made again sooner than it is looked up
MOST_KEPT = 1000  # digests in the file
_lock = threading.Lock()
_known: dict[str, str] = {}


def model_hash(source: Path) -> str:
    """Return the digest, 64 hex digits, of the model in a file or folder.

    That of a large model takes seconds; it is kept in this process and in a file of the user's cache, under the paths,
    sizes and times of the files, and made anew when one of them changed.

    Raises:
        CheckpointError: a file cannot be read.
    """
    files = [source] if source.is_file() else _weights(source)
    try:
        facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        large = sum(size for _, size, _ in facts) >= WORTH_KEEPING
        with _lock:
            found = _known.get(key) or (_kept().get(key) if large else None)
            if found is None:
                found = _file_hash(source) if source.is_file() else _folder_hash(source, files)
                if large:
                    _keep(key, found)
            _known[key] = found
        return found
    except OSError as error:
        raise CheckpointError(f"{str(source)!r} cannot be read: {error.strerror or error}") from error


def _weights(folder: Path) -> list[Path]:
    """Return the files of weights, sorted; pickles of 2022 only where no safetensors file is beside them."""
    found = sorted(folder.glob("*/*.safetensors"))
    parts = {file.parent for file in found}
    return sorted([*found, *(file for file in folder.glob("*/*.bin") if file.parent not in parts)])


def _file_hash(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _folder_hash(folder: Path, files: Sequence[Path]) -> str:
    lines = [f"{_file_hash(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _place() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latent_diffusion" / "hashes.json"


def _kept() -> dict[str, str]:
    """Return the digests of earlier processes; a file that cannot be read holds none."""
    try:
        values = json.loads(_place().read_text("utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: no home
        return {}
    usable = isinstance(values, dict) and all(isinstance(v, str) and len(v) == 64 for v in values.values())
    return values if usable else {}


def _keep(key: str, found: str) -> None:
    """Remember a digest; where nothing can be written it is made again next time."""
    with contextlib.suppress(OSError, RuntimeError):
        values = dict(list(_kept().items())[-MOST_KEPT:]) | {key: found}
        place = _place()
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(values), "utf-8")
        partial.replace(place)
