"""Where pictures go: names that no file has yet, and a folder that can be written, both found before any compute."""

import contextlib
import os
import secrets
import time
from pathlib import Path

from latent_diffusion.errors import ConfigError, ResourceError
from latent_diffusion.provenance.picture_formats import LOSSY, SUFFIXES

__all__ = ["LOSSY", "SUFFIXES", "check_folder", "names_a_file", "plan_files"]

FOLDER = Path("outputs")


def plan_files(output: Path | None, seed: int, count: int) -> list[Path]:
    """Return `count` names that do not exist, in a folder that was made and can be written.

    Args:
        output: a file if it has a suffix, else a folder; None = the folder `outputs`.
        seed: of the first picture; part of the names chosen in a folder.
        count: number of pictures; several get -0001 and so on.

    Raises:
        ConfigError: a suffix that cannot be written.
        ResourceError: a named file exists, or the folder cannot be written.
    """
    output = output or FOLDER
    if names_a_file(output):
        if output.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"--output {str(output)!r}: cannot write {output.suffix!r}; use {', '.join(SUFFIXES)}")
        check_folder(output.parent)
        files = _numbered(output.parent / output.stem, output.suffix, count)
        taken = next((file for file in files if _exists(file)), None)
        if taken:
            raise ResourceError(f"--output {str(taken)!r} exists; nothing is overwritten, choose another name")
        return files
    check_folder(output)
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{seed}"
    for attempt in ["", *(f"-{chr(letter)}" for letter in range(ord("b"), ord("z") + 1)), f"-{secrets.token_hex(8)}"]:
        files = _numbered(output / (stem + attempt), ".png", count)
        if not any(map(_exists, files)):
            return files
    raise ResourceError(f"--output {str(output)!r}: every name for this second is taken; try again")


def names_a_file(output: Path | None) -> bool:
    """Whether the caller chose the file's name: `output` has a suffix and is not a folder."""
    return output is not None and bool(output.suffix) and not os.path.isdir(output)


def _numbered(stem: Path, suffix: str, count: int) -> list[Path]:
    if count == 1:
        return [stem.with_name(stem.name + suffix)]
    return [stem.with_name(f"{stem.name}-{number:04d}{suffix}") for number in range(1, count + 1)]


def _exists(file: Path) -> bool:
    """Whether the name is taken, also by a link to nothing.

    Raises:
        ResourceError: no file can have the name.
    """
    try:
        os.lstat(file)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ResourceError(f"--output {str(file)!r} cannot be written: {error.strerror}; choose another") from error
    return True


def check_folder(folder: Path) -> None:
    """Make the folder and try to write into it: permissions alone do not say whether the disk takes a file.

    Raises:
        ResourceError: it cannot be written.
    """
    probe = folder / f".partial-{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(probe, "xb") as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        raise ResourceError(
            f"--output folder {str(folder)!r} cannot be written: {error.strerror or error}; choose another"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
