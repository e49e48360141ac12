"""The interface of a source: pictures with their captions in a fixed order, row k found in constant time.

A layout is one file in `data/sources/`; the first name of its `__all__` is its class, `layout: NAME` finds it.
"""

from abc import ABC, abstractmethod
from typing import Self

from latent_diffusion.data.rows.table import Row
from latent_diffusion.data.settings import ReadingConfig

__all__ = ["Source"]


class Source(ABC):
    """Rows 0 .. N - 1; every method may be called from several threads.

    Attributes:
        where: the name errors give the source.
        fields: names of the metadata fields that rows have.
    """

    words: str
    """What it is, in messages."""
    reads: frozenset[str] = frozenset()
    """Which of the settings `caption_ending`, `picture` and `subfolders` it reads; the others are refused."""

    where: str
    fields: frozenset[str]

    @classmethod
    @abstractmethod
    def recognises(cls, path: str) -> bool:
        """Return whether `path` has this layout, by its name and its first files alone."""

    @classmethod
    @abstractmethod
    def open(cls, path: str, config: ReadingConfig) -> Self:
        """Return the source at `path`.

        Raises:
            DataError: absent, damaged, or of another layout.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows N."""

    @abstractmethod
    def row(self, k: int) -> Row:
        """Return the metadata of row k: `file_name` (what errors call the picture) and every other field."""

    def name(self, k: int) -> str:
        """Return `file_name` of row k, without the other fields where these take time to make."""
        return str(self.row(k)["file_name"])

    @abstractmethod
    def read(self, k: int) -> bytes:
        """Return the picture of row k as its file has it.

        Raises:
            DataError: it cannot be read.
        """

    def mask(self, k: int) -> bytes | None:
        """Return the mask of row k as its file has it, or None."""
        return None

    @abstractmethod
    def identity(self) -> bytes:
        """Return bytes that change when the source does, without reading its pictures."""
