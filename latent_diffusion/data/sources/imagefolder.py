"""A folder of pictures, or a .zip of one, with a table or with captions beside them (`data/rows/metadata.py`)."""

import hashlib
import json
from pathlib import Path
from typing import Self

from latent_diffusion.data.pictures.formats import named
from latent_diffusion.data.places.files import Files, open_files
from latent_diffusion.data.places.stalled import read_within
from latent_diffusion.data.rows.metadata import endings, looked_for, read_rows
from latent_diffusion.data.rows.source import Source
from latent_diffusion.data.rows.table import Row
from latent_diffusion.data.settings import ReadingConfig
from latent_diffusion.errors import DataError

__all__ = ["FolderSource"]


class FolderSource(Source):
    """Files below a folder or in an archive; the rows are kept in memory, the pictures are not."""

    words = "a folder or archive of pictures"
    reads = frozenset({"caption_ending", "subfolders"})

    def __init__(self, where: str, files: Files, rows: list[Row], seconds: float) -> None:
        """Take the files and the rows, each with `file_name` and perhaps `mask_file`; `seconds`: wait for a file."""
        self.where, self._files, self._rows, self._seconds = where, files, rows, seconds
        self.fields = frozenset(field for row in rows for field in row)

    @classmethod
    def recognises(cls, path: str) -> bool:
        """Return True: every other layout is tried before."""
        return True

    @classmethod
    def open(cls, path: str, config: ReadingConfig) -> Self:
        """Return the pictures at `path`, with those of `config.caption_ending` as captions."""
        files = open_files(path, config.read_timeout)
        rows = read_rows(files, path, config.caption_ending)
        if not config.subfolders:
            rows = [row for row in rows if "/" not in str(row["file_name"])]
        if not rows:
            held = endings(files.names())
            raise DataError(
                f"data set {path!r} has 0 pictures ({named()}) and no table; "
                f"it holds {held or 'no file'}; looked for {looked_for(config.caption_ending)}"
            )
        return cls(path, files, rows, config.read_timeout)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self._rows)

    def row(self, k: int) -> Row:
        """Return the fields of the table, or `file_name` and `text`."""
        return self._rows[k]

    def read(self, k: int) -> bytes:
        """Return the bytes of a picture's file."""
        return self._files.read(str(self._rows[k]["file_name"]))

    def mask(self, k: int) -> bytes | None:
        """Return the bytes of the file that `mask_file` names."""
        name = self._rows[k].get("mask_file")
        return None if name is None else self._files.read(str(name))

    def identity(self) -> bytes:
        """Return a digest of the rows and of the size and time of change of the folder's or archive's files."""
        digest = hashlib.blake2b(json.dumps(self._rows, sort_keys=True, default=str).encode(), digest_size=16)
        root = Path(self.where)
        for name in [str(row["file_name"]) for row in self._rows] if root.is_dir() else [""]:
            facts = read_within(self._seconds, str(root / name), (root / name).stat)
            digest.update(f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
        return digest.digest()
