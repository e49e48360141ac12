"""A data set that the `datasets` library wrote with `save_to_disk`: arrow files, mapped into memory row by row."""

import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from latent_diffusion.data.places.stalled import read_within
from latent_diffusion.data.rows.picture_columns import MASK, ColumnSource, picture_column
from latent_diffusion.data.settings import ReadingConfig
from latent_diffusion.errors import ConfigError, DataError

__all__ = ["DatasetsSource"]

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"


class DatasetsSource(ColumnSource):
    """The rows of a `datasets.Dataset`, its pictures undecoded."""

    def __init__(self, path: str, rows: Any, config: ReadingConfig) -> None:
        """Take an open `Dataset`.

        Raises:
            ConfigError: it is not clear which column holds the pictures.
        """
        from datasets import Image

        self.where, self._seconds = path, config.read_timeout
        pictures = [name for name, kind in rows.features.items() if isinstance(kind, Image)]
        self._picture = picture_column(path, rows.column_names, pictures, config.picture)
        for name in pictures:
            rows = rows.cast_column(name, Image(decode=False))
        self._mask = MASK if MASK in pictures else None
        self._rest = [name for name in rows.column_names if name not in pictures]
        self._rows, self._others = rows, rows.select_columns(self._rest) if self._rest else None
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
            rows = read_within(config.read_timeout, path, lambda: datasets.load_from_disk(path))
        except Exception as error:  # of pyarrow, json and datasets
            why = " ".join(str(error).split())[:200]
            raise DataError(f"{path!r}: cannot be read as a data set of the datasets library: {why}") from error
        return cls(path, rows, config)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def _name(self, k: int) -> str:
        return f"row {k}"

    def _words(self, k: int) -> Mapping[str, Any]:
        return {} if self._others is None else self._value(self._others, k)

    def _bytes(self, column: str, k: int) -> bytes | None:
        value = self._value(self._pictures, k)[column]
        return None if value is None else value["bytes"]

    def _value(self, rows: Any, k: int) -> Mapping[str, Any]:
        def locked() -> Mapping[str, Any]:
            with self._lock:
                return rows[k]

        return read_within(self._seconds, f"{self.where}/{self._name(k)}", locked)

    def identity(self) -> bytes:
        """Return a digest of the description of the data set and of its fingerprint."""
        return hashlib.blake2b(
            f"{self._rows.info.features}\0{len(self)}\0{self._rows._fingerprint}".encode(), digest_size=16
        ).digest()
