"""Text files of a model: regular files of a size that text has, read whole."""

import stat
from pathlib import Path

from latent_diffusion.checkpoint.files.links import refuse_broken_link
from latent_diffusion.errors import CheckpointError

__all__ = ["MAX_BYTES", "read_text"]

MAX_BYTES = 100_000_000
"""Largest text file that is read; the largest known, the tokenizer.json of a large vocabulary, takes 20 MB."""


def read_text(file: Path) -> str:
    """Return the UTF-8 text of a file.

    Raises:
        CheckpointError: absent, no regular file (a pipe would be waited for without end), too large, or not UTF-8.
    """
    refuse_broken_link(file)
    try:
        facts = file.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise CheckpointError(f"{file}: cannot be read: it is no regular file; fetch the model again")
        if facts.st_size > MAX_BYTES:
            raise CheckpointError(f"{file}: {facts.st_size} bytes, but at most {MAX_BYTES} are read")
        return file.read_text("utf-8")
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from None
