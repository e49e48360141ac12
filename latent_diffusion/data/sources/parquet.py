"""Parquet files with the pictures inside: one file, or a folder of them, as data sets on the hub are stored.

One column holds the pictures, as bytes or as `datasets` writes them, `{bytes, path}`; `mask` may hold masks. A row is
found by its row group, which is read whole: small groups (about 100 rows) are read fastest in a drawn order.
"""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from latent_diffusion.data.pictures.formats import PICTURES
from latent_diffusion.data.places.stalled import read_within
from latent_diffusion.data.rows.picture_columns import MASK, ColumnSource, picture_column
from latent_diffusion.data.rows.table import import_pyarrow
from latent_diffusion.data.settings import ReadingConfig
from latent_diffusion.errors import DataError

__all__ = ["ParquetSource"]

GROUPS = 4  # row groups of pictures, and of the other columns, that are kept in memory
FILES = 64  # files that are kept open


class ParquetSource(ColumnSource):
    """Row k of all files together, in order of their names."""

    def __init__(self, path: str, files: list[Path], config: ReadingConfig) -> None:
        """Read the footers of the files; no row is read yet.

        Raises:
            DataError: a file is not parquet, or the files have different columns.
            ConfigError: it is not clear which column holds the pictures.
        """
        self.where, self._files, self._seconds = path, files, config.read_timeout
        self._pyarrow = import_pyarrow(path)
        self._lock = threading.Lock()
        self._opened: OrderedDict[int, Any] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int, bool], Any] = OrderedDict()
        starts, self._place = [0], []  # first row of each row group; its file and its number there
        schema = self._file(0).schema_arrow
        for number in range(len(files)):
            file = self._file(number)
            if file.schema_arrow.names != schema.names:
                raise DataError(
                    f"{files[number]}: columns {file.schema_arrow.names}, but {files[0]} has {schema.names}"
                )
            for group in range(file.metadata.num_row_groups):
                starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
                self._place.append((number, group))
        self._starts = np.array(starts)
        pictures = [name for name in schema.names if self._holds_bytes(schema.field(name).type)]
        self._picture = picture_column(path, schema.names, pictures, config.picture)
        self._mask = MASK if MASK in pictures else None
        self._rest = [name for name in schema.names if name not in (self._picture, self._mask)]
        self.fields = frozenset([*self._rest, "file_name"])
        if not len(self):
            raise DataError(f"data set {path!r} has 0 rows")

    @classmethod
    def recognises(cls, path: str) -> bool:
        """Return whether it is a parquet file, or a folder whose files are parquet."""
        return bool(parquet_files(Path(path)))

    @classmethod
    def open(cls, path: str, config: ReadingConfig) -> Self:
        """Return the rows of the file or folder at `path`."""
        files = parquet_files(Path(path))
        if not files:
            raise DataError(f"{path!r}: no parquet file, and no folder of them")
        return cls(path, files, config)

    def _holds_bytes(self, kind: Any) -> bool:
        types = self._pyarrow.types
        if types.is_struct(kind):
            return any(kind.field(k).name == "bytes" for k in range(kind.num_fields))
        return types.is_binary(kind) or types.is_large_binary(kind)

    def _file(self, number: int) -> Any:
        """Return an open file; the caller holds the lock or is alone."""
        if number in self._opened:
            self._opened.move_to_end(number)
            return self._opened[number]
        path = self._files[number]
        try:
            file = read_within(self._seconds, str(path), lambda: self._pyarrow.parquet.ParquetFile(path))
        except (self._pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: not parquet, or damaged: {' '.join(str(error).split())[:200]}") from error
        self._opened[number] = file
        if len(self._opened) > FILES:
            self._opened.popitem(last=False)[1].close()
        return file

    def _group(self, k: int, *, pictures: bool) -> tuple[Any, int]:
        """Return the columns of the row group that has row k, and the row's place in it."""
        group = int(np.searchsorted(self._starts, k, side="right")) - 1
        number, inner = self._place[group]
        name = f"{self._files[number]}: row group {inner}"
        table = read_within(self._seconds, name, lambda: self._read_group(number, inner, pictures=pictures))
        return table, k - int(self._starts[group])

    def _read_group(self, number: int, inner: int, *, pictures: bool) -> Any:
        """Return the columns of a row group, kept or read."""
        key = number, inner, pictures
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
            else:
                columns = [self._picture, *([self._mask] if self._mask else [])] if pictures else self._rest
                try:
                    self._groups[key] = self._file(number).read_row_group(inner, columns=columns, use_threads=False)
                except (self._pyarrow.ArrowException, OSError) as error:
                    why = " ".join(str(error).split())[:200]
                    raise DataError(f"{self._files[number]}: row group {inner} cannot be read: {why}") from error
                for old in [one for one in self._groups if one[2] == pictures][:-GROUPS]:
                    del self._groups[old]
            return self._groups[key]

    def __len__(self) -> int:
        """Return the number of rows of all files."""
        return int(self._starts[-1])

    def _name(self, k: int) -> str:
        number = self._place[int(np.searchsorted(self._starts, k, side="right")) - 1][0]
        return f"{self._files[number].name}:{k}"

    def _words(self, k: int) -> Mapping[str, Any]:
        table, place = self._group(k, pictures=False)
        return {name: table.column(name)[place].as_py() for name in self._rest}

    def _bytes(self, column: str, k: int) -> bytes | None:
        table, place = self._group(k, pictures=True)
        value = table.column(column)[place].as_py()
        return value.get("bytes") if isinstance(value, dict) else value

    def identity(self) -> bytes:
        """Return a digest of names, sizes and footers of the files."""
        digest = hashlib.blake2b(digest_size=16)
        for path in self._files:
            size = path.stat().st_size
            with path.open("rb") as file:
                file.seek(-8, os.SEEK_END)
                footer = int.from_bytes(file.read(4), "little")
                file.seek(max(0, size - 8 - footer))
                digest.update(f"{path.name}\0{size}\0".encode() + file.read())
        return digest.digest()


def parquet_files(path: Path) -> list[Path]:
    """Return the parquet files at `path`, sorted; [] where it is something else, or a folder with pictures in it.

    `path` may be a pattern such as `photos/train-*.parquet`.
    """
    if "*" in path.name and path.suffix == ".parquet" and not path.exists():
        return sorted(path.parent.glob(path.name))
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    found: list[Path] = []
    for folder, _, files in os.walk(path):
        names = [Path(folder) / name for name in files if not name.startswith(".")]
        if any(name.suffix.lower() in PICTURES for name in names):
            return []
        found += [name for name in names if name.suffix == ".parquet" and name.is_file()]
    return sorted(found)
