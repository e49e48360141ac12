"""`--preview FILE`: what the picture is so far, in a file that is replaced as a whole at each step."""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from latent_diffusion.cli.output import SUFFIXES
from latent_diffusion.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    from PIL import Image

    from latent_diffusion.diffusion.level import Step
    from latent_diffusion.pipeline.preview import Preview

__all__ = ["check_preview", "preview_file"]

MOST = 4  # pictures of a batch that are shown, side by side


def check_preview(file: Path) -> None:
    """Check, before the model is loaded, that the file can be written and does not exist.

    Raises:
        ConfigError: a suffix that cannot be written.
        ResourceError: the file exists, or its folder cannot be written.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--preview {str(file)!r}: cannot write {file.suffix!r}; use {', '.join(SUFFIXES)}")
    if os.path.lexists(file):
        raise ResourceError(f"--preview {str(file)!r} exists; nothing is overwritten, choose another name")
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise ResourceError(f"--preview folder {str(file.parent)!r} cannot be written; choose another")


@contextmanager
def preview_file(file: Path, preview: "Preview") -> "Iterator[Callable[[Step], None]]":
    """Yield a function that shows the `x0` of a step in `file`; the file is gone after the block."""

    def show(step: "Step") -> None:
        pictures = preview(step.x0[:MOST])
        partial = file.with_name(f".partial-{secrets.token_hex(8)}{file.suffix}")
        try:
            _side_by_side(pictures).save(partial)
            partial.replace(file)
        except OSError as error:
            raise ResourceError(f"--preview {str(file)!r} cannot be written: {error.strerror or error}") from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    try:
        yield show
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def _side_by_side(pictures: "list[Image.Image]") -> "Image.Image":
    from PIL import Image

    width, height = pictures[0].size
    sheet = Image.new("RGB", (width * len(pictures), height))
    for k, picture in enumerate(pictures):
        sheet.paste(picture, (width * k, 0))
    return sheet
