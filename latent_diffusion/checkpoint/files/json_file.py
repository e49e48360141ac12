"""JSON files that hold one object: read with errors that name the file, written whole or not at all."""

import json
from pathlib import Path
from typing import Any

from latent_diffusion.checkpoint.files.atomic import replacing
from latent_diffusion.checkpoint.files.text_file import read_text
from latent_diffusion.errors import CheckpointError

__all__ = ["read_json", "write_json"]


def read_json(file: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        CheckpointError: the file is missing or is not one.
    """
    try:
        values = json.loads(read_text(file))
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: a JSON object was expected, found {type(values).__name__}")
    return values


def write_json(file: Path, values: object) -> None:
    """Write one JSON file, so that a reader sees the old one or the new one, whole.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is as it was.
    """
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
