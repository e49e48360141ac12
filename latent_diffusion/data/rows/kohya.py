"""Data sets laid out for kohya's sd-scripts: folders whose names say how often their pictures are shown.

    train/10_sks cat/*.png, *.caption      every picture ten times a pass; "sks cat" where no caption lies beside it

Reference: sd-scripts, docs/train_README.md and docs/config_README.md (DreamBooth, class and identifier method).
"""

import re
from pathlib import Path
from typing import Any

from latent_diffusion.data.settings import SourceConfig
from latent_diffusion.errors import DataError

__all__ = ["repeated_folders"]

REPEATED = re.compile(r"(\d+)_(.*)")


def repeated_folders(config: SourceConfig) -> list[SourceConfig]:
    """Return a source for each folder `REPEATS_WORDS` where `path` is laid out so; else the one source itself.

    Raises:
        DataError: `layout` is kohya, but there is no such folder.
    """
    if config.layout not in ("auto", "kohya"):
        return [config]
    root = Path(config.path)
    try:
        entries = sorted(root.iterdir()) if root.is_dir() else []
    except OSError:  # named by the reader of folders
        return [config]
    found = [(entry, match) for entry in entries if entry.is_dir() and (match := REPEATED.fullmatch(entry.name))]
    files = [entry for entry in entries if entry.is_file() and not entry.name.startswith(".")]
    if config.layout == "auto" and (not found or files or len(found) < sum(entry.is_dir() for entry in entries)):
        return [config]
    if not found:
        raise DataError(f"{config.path!r} has no folder with a name like `10_cat`, as layout kohya needs")
    return [_subset(config, folder, int(match.group(1)), match.group(2)) for folder, match in found]


def _subset(config: SourceConfig, folder: Path, repeats: int, words: str) -> SourceConfig:
    if repeats < 1:
        raise DataError(f"{str(folder)!r}: 0 repeats; the number before `_` is how often a pass shows each picture")
    own: dict[str, Any] = {
        "path": str(folder),
        "layout": "imagefolder",
        "subfolders": False,
        "weight": config.weight * repeats,
        "wording": _first_line(config),
    }
    if words.strip() and config.default_caption is None:
        own["default_caption"] = words.strip()
    return config.model_copy(update=own)


def _first_line(config: SourceConfig) -> Any:
    """Return the changes of captions, with only the first line read, as sd-scripts does, unless that is set."""
    wording = config.wording
    return wording if "lines" in wording.model_fields_set else wording.model_copy(update={"lines": "first"})
