"""`generate --resume`: pictures named by their rows, drawn by any number of processes in any number of runs.

Process r of W draws the rows r, r + W, ... (batches of rows with --batch-size) that have no file yet, so the processes
need not talk to each other. A file in the folder holds what decides the pictures; another command is refused there.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latent_diffusion.cli.output import check_folder
from latent_diffusion.errors import ConfigError, DataError

__all__ = ["Share", "begin"]

DESCRIPTION = "rows.json"
SEED = 0  # where none is given: every process and every run must have the same
NOT_OURS = ("output", "preview", "preview_kind", "preview_model", "device", "resume")  # decide no pixel


@dataclass(frozen=True)
class Share:
    """The part of the rows that this process draws."""

    files: list[Path]  # one a row
    rank: int
    processes: int

    def mine(self, first: int, at_once: int) -> bool:
        """Whether this process draws the batch that begins with row `first`, and a file of it is missing."""
        turn = first // at_once % self.processes == self.rank
        return turn and not all(file.exists() for file in self.files[first : first + at_once])


def processes() -> int:
    """Return how many processes a launcher started, 1 without one."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def begin(given: dict[str, Any], texts: Sequence[str]) -> Share | None:
    """Return this process's share of the rows, and set seed, device and threads; None = one process draws all.

    Args:
        given: options of the command line, which are changed.
        texts: the prompt of each row.

    Raises:
        ConfigError: no folder, or one that holds the pictures of another command.
        ResourceError: the folder cannot be written.
    """
    count = processes()
    if not (given["resume"] or count > 1):
        return None
    folder = given["output"]
    if folder is None or folder.suffix:
        raise ConfigError(
            "--resume, and several processes, need --output FOLDER, where each row has a file of its name"
        )
    check_folder(folder)
    given["seed"] = SEED if given["seed"] is None else given["seed"]
    local = int(os.environ.get("LOCAL_RANK") or 0)
    threads = _agree(folder, _description(given, texts), _threads())
    _compute_with(given, threads, local)
    digits = max(4, len(str(len(texts))))
    files = [folder / f"{row:0{digits}d}.png" for row in range(1, len(texts) + 1)]
    return Share(files, int(os.environ.get("RANK") or 0), count)


def _description(given: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """Return what decides the pictures, as JSON has it."""
    options = {name: value for name, value in given.items() if value is not None and name not in NOT_OURS}
    return json.loads(json.dumps({"rows": list(texts), "options": options}, default=str))


def _agree(folder: Path, description: dict[str, Any], threads: int) -> int:
    """Write the description, or compare it with the one that another process or run wrote first.

    Returns:
        The number of threads of the first run: another one may round a pixel otherwise.
    """
    place, partial = folder / DESCRIPTION, folder / f".partial-{secrets.token_hex(8)}"
    try:
        partial.write_text(json.dumps({**description, "threads": threads}, indent=1), "utf-8")
        with contextlib.suppress(FileExistsError):
            os.link(partial, place)  # unlike a rename it never replaces a file
    finally:
        partial.unlink(missing_ok=True)
    try:
        kept = json.loads(place.read_text("utf-8"))
        count = int(kept.pop("threads"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{str(place)!r} cannot be read: {error}; delete it, or choose another folder") from error
    if kept != description:
        differs = [name for name in description if kept.get(name) != description[name]]
        raise ConfigError(
            f"--output {str(folder)!r} holds pictures of another command: {' and '.join(differs)} differ, see "
            f"{DESCRIPTION}; repeat that command, or choose another folder"
        )
    return count


def _threads() -> int:
    from latent_diffusion.runtime.cpu.threads import choose_threads

    return choose_threads(int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


def _compute_with(given: dict[str, Any], threads: int, local: int) -> None:
    import torch

    from latent_diffusion.runtime.cpu.threads import set_threads

    set_threads(threads)
    if given["device"] is None and processes() > 1 and torch.cuda.is_available():
        given["device"] = f"cuda:{local % torch.cuda.device_count()}"
