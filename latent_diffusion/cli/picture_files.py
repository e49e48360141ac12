"""Steps that all picture commands share: load the model, choose the seed, write the files."""

import os
import secrets
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from latent_diffusion.checks import MAX_SEED
from latent_diffusion.cli.output import LOSSY
from latent_diffusion.errors import CheckpointError, ConfigError, DataError, ResourceError

if TYPE_CHECKING:
    from latent_diffusion.pipeline.pipeline import LatentDiffusionPipeline, Output

__all__ = [
    "check_pictures",
    "load_pipeline",
    "read_prompts_file",
    "seed_or_draw",
    "split_weight",
    "warn_if_lossy",
    "write_pictures",
]

MAX_PROMPTS_FILE = 100_000_000  # bytes


def check_pictures(files: Mapping[str, Path]) -> None:
    """Check that each option's file is there, before the model is loaded.

    Raises:
        DataError: naming the option.
    """
    for name, file in files.items():
        if not os.path.isfile(file):
            raise DataError(f"{name} {str(file)!r}: there is no such file")


def warn_if_lossy(files: Sequence[Path]) -> None:
    """Warn if the file's format does not keep pixels."""
    if files[0].suffix.lower() in LOSSY:
        typer.echo(
            f"warning: {files[0].suffix} is a lossy format and changes all pixels; write .png to keep them", err=True
        )


def load_pipeline(
    model: str,
    options: Mapping[str, Any],
    loras: Sequence[str] | None = None,
    embeddings: Sequence[Path] | None = None,
) -> "LatentDiffusionPipeline":
    """Load the model; this is where torch is first imported, after everything cheap has been checked.

    Args:
        model: a bundled name or a path.
        options: of `from_pretrained`, see `LoadOptions`.
        loras: FILE or FILE:WEIGHT each.
        embeddings: files of learned words.

    Raises:
        CheckpointError: a file is missing, damaged or made for another model.
    """
    from latent_diffusion.checkpoint.locate import locate_model

    locate_model(model)
    weighted = [split_weight(text) for text in loras or ()]
    for option, file in [("--lora", file) for file, _ in weighted] + [("--embedding", f) for f in embeddings or ()]:
        if not file.exists():
            raise CheckpointError(f"{option} {str(file)!r}: there is no such file")
    from latent_diffusion.pipeline.pipeline import LatentDiffusionPipeline

    pipe = LatentDiffusionPipeline.from_pretrained(model, **dict(options))
    for file, weight in weighted:
        pipe.load_lora_weights(file, weight=weight)
    for file in embeddings or ():
        pipe.load_textual_inversion(file)
    return pipe


def split_weight(text: str) -> tuple[Path, float]:
    """Return file and weight of FILE or FILE:WEIGHT; a colon that no number follows belongs to the name."""
    file, _, weight = text.rpartition(":")
    try:
        return (Path(file), float(weight)) if file else (Path(text), 1.0)
    except ValueError:
        return Path(text), 1.0


def seed_or_draw(seed: int | None, count: int) -> int:
    """Return the first of `count` seeds that count up, drawn if None.

    Raises:
        ConfigError: a seed outside 0 .. 2^32 - 1.
    """
    if seed is None:
        return secrets.randbelow(MAX_SEED - count + 2)
    if not 0 <= seed <= MAX_SEED - count + 1:
        raise ConfigError(f"--seed {seed} is out of range; use 0 to {MAX_SEED - count + 1} for {count} pictures")
    return seed


def read_prompts_file(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty.

    Raises:
        DataError: no readable UTF-8 text, or nothing in it.
    """
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # a pipe could hang, a device never end
            raise DataError(f"--prompts-file {str(path)!r} is no regular file; write the prompts into one, one a line")
        if facts.st_size > MAX_PROMPTS_FILE:
            raise DataError(
                f"--prompts-file {str(path)!r} has {facts.st_size} bytes; at most {MAX_PROMPTS_FILE} are read"
            )
        prompts = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"--prompts-file {str(path)!r} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"--prompts-file {str(path)!r} is not UTF-8 text: byte {error.start}") from error
    if not prompts:
        raise DataError(f"--prompts-file {str(path)!r} holds no prompt; write one a line")
    return prompts


def write_pictures(out: "Output", files: list[Path], *, named: bool) -> None:
    """Write each picture with its record and print its path.

    Args:
        out: the pictures.
        files: a name for each.
        named: whether the caller chose the names. Where we did, one that another run took in the meantime (several
            started in one second) gets an ending of its own.
    """
    from PIL import Image

    from latent_diffusion.provenance.picture_file import write_picture

    for picture, record, file in zip(out.images, out.records, files, strict=True):
        assert isinstance(picture, Image.Image), 'output_type "pil" gives pictures'
        try:
            write_picture(picture, file, record)
        except ResourceError as error:
            if named or not isinstance(error.__cause__, FileExistsError):
                raise
            file = file.with_stem(f"{file.stem}-{secrets.token_hex(4)}")
            write_picture(picture, file, record)
        try:
            typer.echo(file)
        except BrokenPipeError:  # whoever read the paths left; the other pictures are still wanted
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
