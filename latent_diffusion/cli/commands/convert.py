"""`latent-diffusion convert`: a model from one form into the other."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from latent_diffusion.cli.arguments import given_of, takes
from latent_diffusion.errors import ConfigError, ResourceError
from latent_diffusion.options.model import ReadingOptions
from latent_diffusion.registry import nearest

__all__ = ["convert"]

DTYPES = ("float32", "float16", "bfloat16")
FILE = ".safetensors"
NO_TARGETS = (".ckpt", ".pt", ".pth", ".bin")


@takes(ReadingOptions)
def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Bundled name, folder or single file.", show_default=False)
    ],
    target: Annotated[
        Path, typer.Argument(metavar="DST", help="File to write (.safetensors), or else a folder.", show_default=False)
    ],
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", metavar="NAME", help=f"Number format: {', '.join(DTYPES)}.", show_default="each tensor's own"
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DST if it exists.")] = False,
    **given: Any,
) -> None:
    """Write a model as a diffusers folder or as one .safetensors file.

    The folder opens in diffusers, the file in the tools that read CompVis and A1111 files; both open here. DST is
    written whole or not at all. An old .ckpt is read without running its code.

    **Examples**

    `latent-diffusion convert v1-5-pruned-emaonly.safetensors models/sd15`

    `latent-diffusion convert models/mine mine.safetensors --dtype float16`
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype!r}; there are {', '.join(DTYPES)}{nearest(dtype, DTYPES)}")
    if target.suffix.lower() in NO_TARGETS:
        raise ConfigError(f"{str(target)!r}: pickles are not written; name a {FILE} file or a folder")
    _check_target(source, target, overwrite)
    import torch

    from latent_diffusion.checkpoint.load import load_model

    kind = None if dtype is None else getattr(torch, dtype)
    parts = load_model(source, kind, **given_of(ReadingOptions, given))
    for note in parts.notes:
        typer.echo(note)
    _write(parts, target)
    typer.echo(target)


def _check_target(source: str, target: Path, overwrite: bool) -> None:
    """Refuse before anything is read what could not be written.

    Raises:
        ConfigError: something is there, or the source is in it.
        ResourceError: its folder is not there, or no file can have the name.
    """
    if _is_there(target) and not overwrite:
        raise ConfigError(f"{str(target)!r} exists; choose another name, or replace it with --overwrite")
    if target.is_symlink():
        raise ConfigError(f"{str(target)!r} is a link to {os.readlink(target)!r}; give the target of the link instead")
    if target.exists() and target.is_dir() == (target.suffix.lower() == FILE):
        raise ConfigError(f"{str(target)!r} is {'a folder' if target.is_dir() else 'a file'}; choose another name")
    if target.is_dir() and any(target.iterdir()) and not (target / "model_index.json").is_file():
        raise ConfigError(f"{str(target)!r} is a folder without a model; choose another name")
    if target.is_dir() and os.path.realpath(target) in map(str, Path(os.path.realpath(source)).parents):
        raise ConfigError(f"{str(source)!r} lies in {str(target)!r} and would be removed with it; choose another name")
    if not target.absolute().parent.is_dir():
        raise ResourceError(f"{str(target.parent)!r}: there is no such folder")


def _is_there(target: Path) -> bool:
    """Whether the name is taken, also by a link to nothing.

    Raises:
        ResourceError: no file can have the name.
    """
    try:
        os.lstat(target)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise ResourceError(f"{str(target)!r} cannot be written: {error.strerror}; choose another name") from error
    return True


def _write(parts, target: Path) -> None:
    """Write a model, whole or not at all."""
    from latent_diffusion.checkpoint.folder.diffusers_folder import save_folder
    from latent_diffusion.checkpoint.single.single_file import save_single_file

    if target.suffix.lower() == FILE:
        save_single_file(parts, target)
    else:
        save_folder(parts, target)
