"""The folder of `--train-folder`: pictures to train on, the runs, and what they made. Nothing outside it is read.

NAME/ or NAME.zip      pictures with captions, also in folders of folders
runs/NAME.yaml         the configuration of a run, as `latent-diffusion train` reads it
runs/NAME/             its run folder
runs/NAME.log          what its process printed
loras/                 adapters to draw with, where the server has no `--lora-folder`
"""

import os
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from latent_diffusion.checkpoint.locate import INDEX
from latent_diffusion.data.pictures.formats import PICTURES
from latent_diffusion.errors import ResourceError
from latent_diffusion.server.limits import ServeSettings
from latent_diffusion.server.refusals import Refusal

__all__ = ["LORAS", "RUNS", "TrainFolder", "with_own_folders"]

RUNS, LORAS = "runs", "loras"
MAX_DEPTH = 3  # folders of folders that are looked into
MAX_ENTRIES = 20_000  # files and folders that are looked at for one list
MAX_LISTED = 500
TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def with_own_folders(settings: ServeSettings) -> ServeSettings:
    """Make the folders of runs and adapters, and return the settings with a folder of adapters.

    Raises:
        ResourceError: they cannot be made.
    """
    root = settings.train_folder
    if root is None:
        return settings
    loras = settings.lora_folder or root / LORAS
    try:
        for folder in (root / RUNS, loras):
            folder.mkdir(exist_ok=True)
    except OSError as error:
        why = error.strerror or error
        raise ResourceError(f"--train-folder {str(root)!r}: no folder can be made in it: {why}") from error
    return replace(settings, lora_folder=loras)


class TrainFolder:
    """Paths below the folder; every name of a client goes through `inside`."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.runs = self.root / RUNS

    def inside(self, *names: str) -> Path | None:
        """Return the path of a name below the folder, or None: it leads out, by a link too, or is hidden or absent."""
        parts = [part for name in names for part in PurePosixPath(name).parts]
        wrong = not parts or any(part.startswith((".", "/")) or not part.isprintable() for part in parts)
        if wrong or sum(map(len, parts)) > 1000:
            return None
        try:
            path = self.root.joinpath(*parts)
            return path if path.exists() and path.resolve().is_relative_to(self.root) else None
        except OSError:  # a name that is too long, a folder that may not be read
            return None

    def source(self, name: str) -> Path:
        """Return the folder or .zip of pictures that a client means.

        Raises:
            Refusal: there is none.
        """
        path = self.inside(name)
        own = path is not None and path.relative_to(self.root).parts[0] in (RUNS, LORAS)
        if path is None or own or not (path.is_dir() or path.suffix.lower() == ".zip"):
            raise Refusal(404, f"there is no folder or .zip {name!r:.80} in the folder of --train-folder", "data")
        return path

    def sources(self) -> list[dict[str, Any]]:
        """Return the .zip files, and the folders that have a table of pictures, or pictures, which are counted."""
        found: list[dict[str, Any]] = []
        seen = 0
        for place, folders, files in os.walk(self.root):
            here = Path(place).relative_to(self.root)
            depth = len(here.parts)
            folders[:] = sorted(name for name in folders if not name.startswith(".")) if depth < MAX_DEPTH else []
            if not depth:
                folders[:] = [name for name in folders if name not in (RUNS, LORAS)]
            files = [name for name in files if not name.startswith(".")]
            seen += len(folders) + len(files)
            if seen > MAX_ENTRIES or len(found) >= MAX_LISTED:
                break
            pictures = sum(name.lower().endswith(PICTURES) for name in files)
            if depth and any(name in TABLES for name in files):  # its pictures may lie in folders of its own
                pictures = None
                folders.clear()
            if depth and pictures != 0:
                found.append({"name": here.as_posix(), "pictures": pictures})
            zips = sorted(name for name in files if name.lower().endswith(".zip"))
            found += [{"name": (here / name).as_posix(), "pictures": None} for name in zips]
        return [one for one in found if self.inside(one["name"]) is not None]

    def models(self) -> dict[str, str]:
        """Return the whole models that runs made: the name in requests, and the path."""
        found = sorted(self.runs.glob(f"*/model/{INDEX}"))[:MAX_LISTED]
        inside = [path for path in found if self.inside(path.relative_to(self.root).as_posix()) is not None]
        return {f"{RUNS}/{path.parent.parent.name}": str(path.parent) for path in inside}
