"""Put the bundled model's weights together when the package is built or installed: first version plus changes.

A new version of 36 MB would make every clone larger by that, so the repository holds the first version whole, in
assets/emoji-first/, and a later one as its changes, in assets/emoji-changes.safetensors.z (zlib): for each tensor
that differs, integers of 8 bits and a unit for each row,

    new = float16(float32(first) + float32(integer) * unit)

computed by numpy in float32, the product rounded before the sum, so that the same bits come out on every machine.
Integers of at most 7 are kept two in a byte, which halves what their Huffman codes take at least.
weights.json beside the built files has the SHA-256 of each and of the changes; every digest is checked here, and
`checkpoint/built.py` compares what loading can afford. Without changes the built weights are the first version's.

Only the standard library and numpy are imported: a build has no more. `scripts/pack_changes.py` writes the changes.
"""

import hashlib
import json
import math
import os
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent
FIRST, CHANGES = Path("assets/emoji-first"), Path("assets/emoji-changes.safetensors.z")
BUILT = Path("latent_diffusion/bundled/emoji")
RECORD = "weights.json"
PARTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
UNIT = ":unit"  # ends the name of a tensor's units, float32, one a row; without it, int8, of the tensor's shape
TYPES = {"F16": "<f2", "F32": "<f4", "I8": "i1", "U8": "u1"}
SMALL = 7  # largest step of two in a byte: 16 (first + 8) + second + 8
Header = dict[str, Any]


class BuildError(Exception):
    """The weights cannot be put together: one line that names the file and what to do."""


def build_weights(root: Path = ROOT) -> list[Path]:
    """Write the built weights that are not there as weights.json describes them; return the files, relative to `root`.

    Each appears at once or not at all.

    Raises:
        BuildError: a file is missing or damaged.
    """
    record = json.loads((root / BUILT / RECORD).read_text("utf-8"))
    targets = [BUILT / name for name in PARTS.values()]
    wanted = [record["files"][name]["sha256"] for name in PARTS.values()]
    if [digest(read(root / target)) if (root / target).is_file() else None for target in targets] == wanted:
        return targets
    changes = _changes(root, record["changes"])
    for (part, name), target, expected in zip(PARTS.items(), targets, wanted, strict=True):
        made = put_together(read(root / FIRST / name), changes, part, record["changes"])
        if digest(made) != expected:
            raise BuildError(
                f"{FIRST / name}: with the changes its SHA-256 is {digest(made)}, {BUILT / RECORD} has {expected}; "
                f"restore assets/ and {BUILT / RECORD} from one version of the repository"
            )
        write(root / target, made)
    return targets


def put_together(first: bytes, changes: Mapping[str, np.ndarray], part: str, changed: str | None) -> bytes:
    """Return a safetensors file: `first` with the changes of `part`, in the same layout.

    Args:
        first: a safetensors file of float16 tensors.
        changes: of all parts; names begin with the part's.
        part: "unet", "vae" or "text_encoder".
        changed: the changes' SHA-256, which the new header names; None returns `first`.
    """
    if changed is None:
        return first
    header, data = split(first)
    made = bytearray(data)
    for name, entry in header.items():
        steps, unit = changes.get(f"{part}/{name}"), changes.get(f"{part}/{name}{UNIT}")
        if steps is not None and unit is not None:
            start, end = entry["data_offsets"]
            old = tensor(data, entry)
            made[start:end] = moved(old, apart(steps, old.shape), unit).tobytes()
    return join(header, bytes(made), {"changes": changed, "format": "pt"})


def paired(steps: np.ndarray) -> np.ndarray:
    """Return steps of at most 7 two in a byte, (ceil(n / 2),) uint8; others as they are."""
    if np.abs(steps.astype(np.int16)).max(initial=0) > SMALL:
        return steps
    numbers = np.append(steps.ravel(), np.zeros(steps.size % 2, np.int8)).astype(np.int16) + SMALL + 1
    return (16 * numbers[::2] + numbers[1::2]).astype(np.uint8)


def apart(steps: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return steps of this shape, int8, whether they are `paired` or not."""
    if steps.dtype != np.uint8:
        return steps
    numbers = np.stack([steps >> 4, steps & 15], axis=1).ravel()[: math.prod(shape)]
    return (numbers.astype(np.int8) - (SMALL + 1)).reshape(shape)


def moved(first: np.ndarray, steps: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Return first + steps * unit, float16; `unit` has a number for each row of the first axis, or one for all."""
    product = steps.astype(np.float32) * unit.reshape(-1, *[1] * (steps.ndim - 1))
    return (first.astype(np.float32) + product).astype("<f2")


def _changes(root: Path, expected: str | None) -> dict[str, np.ndarray]:
    """Return the changes by name; none where weights.json names none."""
    if expected is None:
        return {}
    packed = read(root / CHANGES)
    if digest(packed) != expected:
        raise BuildError(
            f"{CHANGES}: its SHA-256 is {digest(packed)}, {BUILT / RECORD} has {expected}: damaged, or of another "
            f"version; restore both by `git checkout -- {CHANGES} {BUILT / RECORD}`"
        )
    return tensors(packed)


def tensors(packed: bytes) -> dict[str, np.ndarray]:
    """Return the steps and units of a file of changes by name."""
    header, data = split(unpacked(packed))
    return {name: tensor(data, entry) for name, entry in header.items()}


def unpacked(file: bytes) -> bytes:
    """Return what the zlib streams in a file hold, one after the other."""
    parts = []
    while file:
        stream = zlib.decompressobj()
        parts.append(stream.decompress(file) + stream.flush())
        file = stream.unused_data
    return b"".join(parts)


def split(file: bytes) -> tuple[Header, bytes]:
    """Return header (name -> dtype, shape, data_offsets) and data of a safetensors file; the metadata is left out."""
    size = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:size])
    header.pop("__metadata__", None)
    return header, file[size:]


def join(header: Mapping[str, Any], data: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return the safetensors file of a header, its data and its metadata: the same bytes for the same values."""
    text = json.dumps({"__metadata__": dict(metadata), **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def tensor(data: bytes, entry: Mapping[str, Any]) -> np.ndarray:
    """Return a tensor of a safetensors file's data, read-only."""
    start, end = entry["data_offsets"]
    return np.frombuffer(data[start:end], TYPES[entry["dtype"]]).reshape(entry["shape"])


def digest(data: bytes) -> str:
    """Return the SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def read(file: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        BuildError: it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise BuildError(f"{file}: {error.strerror}; it comes with the repository and the sdist") from None


def write(file: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".tmp-{os.getpid()}-{file.name}")
    try:
        partial.write_bytes(data)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def main() -> int:
    """Build, and say what was built; return the exit code."""
    try:
        for file in build_weights():
            print(file)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
