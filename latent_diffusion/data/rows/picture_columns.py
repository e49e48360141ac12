"""Tables that hold pictures in a column: what data sets of parquet files and of the `datasets` library share."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from latent_diffusion.data.rows.source import Source
from latent_diffusion.data.rows.table import Row
from latent_diffusion.errors import ConfigError, DataError

__all__ = ["MASK", "ColumnSource", "picture_column"]

MASK = "mask"


def picture_column(where: str, names: Sequence[str], pictures: Sequence[str], wanted: str | None) -> str:
    """Return the column of pictures: the `wanted` one, or the only one that holds no masks.

    Args:
        where: the data set, for the message.
        names: all columns.
        pictures: those that hold pictures or masks.
        wanted: the value of `data.picture`.

    Raises:
        ConfigError: there is no such column, or it is not clear which.
    """
    if wanted is not None:
        if wanted not in pictures:
            raise ConfigError(f"data.picture: {where!r} has no column {wanted!r} of pictures; there are {pictures}")
        return wanted
    found = [name for name in pictures if name != MASK]
    if len(found) != 1:
        raise ConfigError(
            f"{where!r} has {len(found)} columns of pictures ({found}) among {names}; name one in data.picture"
        )
    return found[0]


class ColumnSource(Source):
    """A data set whose rows hold their pictures."""

    words = "a table"
    reads = frozenset({"picture"})
    where: str
    _picture: str
    _mask: str | None

    @abstractmethod
    def _bytes(self, column: str, k: int) -> bytes | None:
        """Return a picture's or mask's file of row k; None where the row has none."""

    @abstractmethod
    def _words(self, k: int) -> Mapping[str, Any]:
        """Return the other columns of row k."""

    @abstractmethod
    def _name(self, k: int) -> str:
        """Return the name of row k in messages, where no column `file_name` gives one."""

    def row(self, k: int) -> Row:
        """Return the columns beside the pictures; `file_name` is a column of that name, or the place of the row."""
        row: Row = {name: value for name, value in self._words(k).items() if value is not None}
        if not isinstance(row.get("file_name"), str):
            row["file_name"] = self._name(k)
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
