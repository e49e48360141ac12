"""Read and write one safetensors file, strictly and atomically.

A file is 8 bytes of header length, a JSON header (name -> dtype, shape, byte range), then the tensors' bytes without a
gap. The library checks most of that without naming the file; here all of it is checked first, and errors name the file.
Format: https://huggingface.co/docs/safetensors (sections "Format" and "Notes").
"""

import errno
import json
import math
import os
import re
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from latent_diffusion.checkpoint.files.atomic import replacing
from latent_diffusion.checkpoint.files.links import refuse_broken_link
from latent_diffusion.checkpoint.files.mapping import LARGE, map_piece, own_pages
from latent_diffusion.checkpoint.files.weights import Stored
from latent_diffusion.errors import CheckpointError, ResourceError

__all__ = ["open_file", "open_tensors", "read_header", "read_tensors", "write_tensors"]

FULL = (errno.ENOSPC, errno.EDQUOT)
MAX_HEADER = 25_000_000  # bytes; the header of a model of 10 000 tensors takes 2 MB
DTYPES = {
    **{"BOOL": torch.bool, "U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64},
    **{"I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F32": torch.float32, "F64": torch.float64},
}
LOOKS_LIKE = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch the real file with `git lfs pull`"),
    (b"PK\x03\x04", "a pickle or zip file under another name: convert it to safetensors with the tool that made it"),
    *((b"\x80" + bytes([v]), "a pickle under another name: convert it to safetensors") for v in range(2, 6)),
    (b"<", "a web page: the download failed"),
)


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the CPU, in the dtypes of the file.

    Raises:
        CheckpointError: the file is missing, is none of this format, or breaks the format anywhere.
    """
    path = Path(path)
    read_header(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a valid safetensors file: {error}") from None


def read_header(path: Path | str) -> dict[str, dict[str, Any]]:
    """Return name -> {dtype, shape, data_offsets} of a file, checked against its size.

    Raises:
        CheckpointError: the file is missing, is none of this format, or breaks the format anywhere.
    """
    path = Path(path)
    with _opened(path) as file:
        return _header(path, file)[0]


def open_tensors(path: Path | str) -> dict[str, Stored]:
    """Return the tensors of a file by name; see `open_file`."""
    return open_file(path)[0]


def open_file(path: Path | str) -> tuple[dict[str, Stored], dict[str, str]]:
    """Return the tensors of a file by name, to be fetched one by one, and the metadata of its header.

    The file stays open as long as any tensor is held.

    Raises:
        CheckpointError: the file is missing, is none of this format, or breaks the format anywhere.
    """
    path = Path(path)
    file = _opened(path)
    written = os.fstat(file.fileno()).st_mtime_ns
    header, metadata, start = _header(path, file)

    def stored(name: str, entry: dict[str, Any]) -> Stored:
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        first, last = entry["data_offsets"]

        def fetch() -> Tensor:
            if first == last:
                return torch.empty(shape, dtype=dtype)
            if mapped:
                _check_unchanged(path, file, name, start + last, written)
                piece = map_piece(file.fileno(), start + first, last - first)
                if piece is not None:
                    return torch.frombuffer(piece[0], dtype=dtype, offset=piece[1]).reshape(shape)
            room = own_pages(last - first)
            _read_into(path, file, name, memoryview(room), start + first)
            return torch.frombuffer(room, dtype=dtype).reshape(shape)

        mapped = last - first >= LARGE and (start + first) % dtype.itemsize == 0
        return Stored(shape, dtype, fetch, mapped)

    return {name: stored(name, entry) for name, entry in header.items()}, metadata


def _opened(path: Path) -> BinaryIO:
    refuse_broken_link(path)
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None


def _check_unchanged(path: Path, file: BinaryIO, name: str, end: int, written: int) -> None:
    """Check that an open file still reaches to byte `end`: looking at a mapping beyond it would kill the process.

    Raises:
        CheckpointError: it has become shorter, or was written to since the time `written` (ns).
    """
    now = os.fstat(file.fileno())
    if now.st_size < end:
        raise CheckpointError(f"{path}: {name} cannot be read: the file became shorter while it was read")
    if now.st_mtime_ns != written:
        raise CheckpointError(f"{path}: {name} cannot be read: the file was written to since; load the model again")


def _read_into(path: Path, file: BinaryIO, name: str, room: memoryview, start: int) -> None:
    """Fill `room` from byte `start`; several threads may read one file.

    Raises:
        CheckpointError: the file has become shorter, or the disk fails.
    """
    done = 0
    while done < len(room):  # one call reads 2 GiB at most
        try:
            count = os.preadv(file.fileno(), [room[done:]], start + done)
        except OSError as error:
            raise CheckpointError(f"{path}: {name} cannot be read: {error.strerror or error}") from None
        if not count:
            raise CheckpointError(f"{path}: {name} cannot be read: the file became shorter while it was read")
        done += count


def _header(path: Path, file: BinaryIO) -> tuple[dict[str, dict[str, Any]], dict[str, str], int]:
    """Return the checked header of an open file, its metadata, and the byte where the tensors start."""
    try:
        size = os.fstat(file.fileno()).st_size
        start = file.read(64)
        (length,) = struct.unpack("<Q", start[:8]) if len(start) >= 8 else (0,)
        if len(start) < 8 or not 2 <= length <= min(size - 8, MAX_HEADER):
            raise CheckpointError(f"{path}: {_unlike(start, size, length)}")
        file.seek(8)
        raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a safetensors file: its header is no JSON ({str(error)[:100]})") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: not a safetensors file: its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ of the header must map names to strings")
    _check_ranges(path, header, size - 8 - length)
    return header, metadata, 8 + length


def _unlike(start: bytes, size: int, length: int) -> str:
    """Return what is wrong with a file whose first 8 bytes are no possible header length."""
    for sign, what in LOOKS_LIKE:
        if start.startswith(sign):
            return f"not a safetensors file; it looks like {what}"
    if size < 8:
        return f"not a safetensors file: {size} bytes, a header needs 8" if size else "the file is empty"
    limit = min(size - 8, MAX_HEADER)
    return f"not a safetensors file: a header of {length} bytes was announced, at most {limit} are possible here"


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {repeated!r} appears twice")
    return values


def _check_ranges(path: Path, header: Mapping[str, Any], size: int) -> None:
    """Check every entry, and that the byte ranges cover the `size` bytes after the header exactly once."""
    ranges = sorted((*_byte_range(path, name, entry), name) for name, entry in header.items())
    end = 0
    for first, last, name in ranges:
        if first != end:
            raise CheckpointError(f"{path}: tensor {name!r} starts at byte {first}, the one before ends at {end}")
        end = last
    if end != size:
        what = "is cut short" if end > size else "has bytes that belong to no tensor"
        raise CheckpointError(f"{path}: the file {what}: its tensors take {end} bytes, there are {size}")


def _byte_range(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """Return first and last byte of one entry after checking it against dtype and shape."""

    def natural(values: Any) -> bool:
        return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{path}: tensor {name!r}: the header must give dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{path}: tensor {name!r}: unknown dtype {dtype!r}; there are {', '.join(DTYPES)}")
    if not natural(shape) or not natural(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{path}: tensor {name!r}: bad shape {shape!r:.100} or data_offsets {offsets!r:.100}")
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != needed:
        raise CheckpointError(
            f"{path}: tensor {name!r}: {dtype} of shape {shape} takes {needed} bytes, data_offsets are {offsets}"
        )
    return offsets[0], offsets[1]


def write_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to `path`, which holds either the old or the whole new file at every moment.

    Args:
        path: the file; its folder must exist.
        tensors: on any device, in any memory order; copied to the CPU.
        metadata: strings for the header; `format: pt`, which readers ask for, is added.

    Raises:
        ResourceError: the disk is full or the folder cannot be written; the old file is as it was.
    """
    path = Path(path)
    plain = _unshared({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    try:
        with replacing(path) as temporary:
            save_file(plain, temporary, {"format": "pt", **(metadata or {})})
            _sort_metadata(Path(temporary))
    except (SafetensorError, OSError) as error:
        needed = sum(tensor.numel() * tensor.element_size() for tensor in plain.values())
        fault = _of_the_disk(error)
        advice = "free some space" if fault.errno in FULL else "make the folder writable"
        raise ResourceError(
            f"{path}: cannot be written: {fault.strerror or error} ({needed} bytes needed{_free(path.parent)}); "
            f"{advice}, or choose another place"
        ) from fault


def _sort_metadata(path: Path) -> None:
    """Put the header's strings in order: the library writes them in another one each time (safetensors 0.8.0).

    So equal tensors and strings make equal files. The header keeps its length; blanks at its end are allowed.
    """
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "the same names and values, without blanks"
        file.seek(8)
        file.write(text.ljust(length))


def _of_the_disk(error: SafetensorError | OSError) -> OSError:
    """Return the system's own error: the weights library only words it, "... (os error 28)"."""
    if isinstance(error, OSError):
        return error
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else OSError(str(error))


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory with another one: the format has no sharing."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return result


def _free(folder: Path) -> str:
    try:
        return f", {shutil.disk_usage(folder).free} free"
    except OSError:
        return ""
