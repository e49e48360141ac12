"""Are the weights of a bundled model those that belong here? They are put together when the package is installed.

`weights.json` beside them lists size and SHA-256 of each file, and the SHA-256 of the changes that made it, which the
file's own header repeats. Size and header take no time to compare; `hatch_weights.py`, which builds, checks the rest.
"""

import json
from pathlib import Path

from latent_diffusion.errors import CheckpointError

__all__ = ["require_built"]

RECORD = "weights.json"
BUILD = "run `python hatch_build.py` in the source tree, or install the package again"


def require_built(folder: Path) -> None:
    """Check that the weights of a bundled model are there and of the version that its folder describes.

    Raises:
        CheckpointError: a file is missing or of another version.
    """
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
        expected = {folder / name: values["bytes"] for name, values in record["files"].items()}
        changes = record["changes"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / RECORD}: cannot be read: {error}; install the package again") from None
    for file, size in expected.items():
        if not file.is_file():
            raise CheckpointError(f"{file}: the weights are not built; {BUILD}")
        if (file.stat().st_size, _changes(file)) != (size, changes):
            raise CheckpointError(f"{file}: the weights were built for another version than {RECORD} lists; {BUILD}")


def _changes(file: Path) -> str | None:
    """Return the SHA-256 of the changes that the header of a built file names, or None."""
    try:
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, file.stat().st_size)))
        return header.get("__metadata__", {}).get("changes")
    except (OSError, ValueError, AttributeError):
        return None  # what reads the weights names the damage
