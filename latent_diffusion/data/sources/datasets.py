"""A data set that the `datasets` library wrote with `save_to_disk`: arrow files, mapped into memory row by row."""

import hashlib
import json
import threading
from pathlib import Path
from typing import Any, Self

from latent_diffusion.data.settings import ReadingConfig
from latent_diffusion.data.source import Source
from latent_diffusion.data.table import Row
from latent_diffusion.errors import ConfigError, DataError

__all__ = ["DatasetsSource"]

MASK = "mask"
STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"


class DatasetsSource(Source):
    """The rows of a `datasets.Dataset`, its pictures undecoded."""

    def __init__(self, path: str, rows: Any, picture: str | None) -> None:
        """Take an open `Dataset`.

        Raises:
            ConfigError: it is not clear which column holds the pictures.
        """
        from datasets import Image

        self.where = path
        pictures = [name for name, kind in rows.features.items() if isinstance(kind, Image)]
        found = [name for name in pictures if name != MASK]
        if picture is None and len(found) != 1:
            raise ConfigError(
                f"{path!r} has {len(found)} columns of pictures ({found}) among {rows.column_names}; name one in "
                "data.picture"
            )
        if picture is not None and picture not in pictures:
            raise ConfigError(f"data.picture: {path!r} has no column {picture!r} of pictures; there are {pictures}")
        self._picture = picture or found[0]
        for name in pictures:
            rows = rows.cast_column(name, Image(decode=False))
        self._mask = MASK if MASK in pictures else None
        self._rest = [name for name in rows.column_names if name not in pictures]
        self._rows, self._words = rows, rows.select_columns(self._rest) if self._rest else None
        self._pictures = rows.select_columns(pictures)
        self._lock = threading.Lock()
        self.fields = frozenset([*self._rest, "file_name"])
        if not len(self):
            raise DataError(f"data set {path!r} has 0 rows")

    @classmethod
    def recognises(cls, path: str) -> bool:
        """Return whether the folder has the files that `save_to_disk` writes."""
        root = Path(path)
        return (root / SPLITS).is_file() or ((root / STATE).is_file() and (root / INFO).is_file())

    @classmethod
    def open(cls, path: str, config: ReadingConfig) -> Self:
        """Return the rows of the folder; of several splits one must be given as its folder."""
        try:
            import datasets
        except ImportError as error:
            raise DataError(f"{path!r}: needs the datasets library: pip install 'latent_diffusion[data]'") from error
        if (Path(path) / SPLITS).is_file():
            splits = json.loads((Path(path) / SPLITS).read_text(encoding="utf-8")).get("splits", [])
            if len(splits) != 1:
                raise ConfigError(f"{path!r} has the splits {splits}; give one, as {str(Path(path) / splits[0])!r}")
            path = str(Path(path) / splits[0])
        try:
            rows = datasets.load_from_disk(path)
        except Exception as error:  # of pyarrow, json and datasets
            why = " ".join(str(error).split())[:200]
            raise DataError(f"{path!r}: cannot be read as a data set of the datasets library: {why}") from error
        return cls(path, rows, config.picture)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def row(self, k: int) -> Row:
        """Return the columns beside the pictures; `file_name` is a column of that name, or the row's number."""
        with self._lock:
            found = self._words[k] if self._words is not None else {}
        row: Row = {name: value for name, value in found.items() if value is not None}
        if not isinstance(row.get("file_name"), str):
            row["file_name"] = f"row {k}"
        return row

    def read(self, k: int) -> bytes:
        """Return the picture of row k."""
        data = self._bytes(self._picture, k)
        if not data:
            raise DataError(
                f"{self.where!r}: row {k}: column {self._picture!r} is empty; links to files are not followed"
            )
        return data

    def mask(self, k: int) -> bytes | None:
        """Return the value of the column `mask`."""
        return None if self._mask is None else self._bytes(self._mask, k)

    def _bytes(self, column: str, k: int) -> bytes | None:
        with self._lock:
            value = self._pictures[k][column]
        return None if value is None else value["bytes"]

    def identity(self) -> bytes:
        """Return a digest of the description of the data set and of its fingerprint."""
        return hashlib.blake2b(
            f"{self._rows.info.features}\0{len(self)}\0{self._rows._fingerprint}".encode(), digest_size=16
        ).digest()
