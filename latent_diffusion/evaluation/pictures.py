"""The real pictures a model is judged against, with what is known of each."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from latent_diffusion.data.pictures.images import decode_image, fit_square, to_tensor
from latent_diffusion.data.places.files import Files, open_files
from latent_diffusion.data.rows.metadata import Row, captions_of, read_rows, values_of
from latent_diffusion.errors import ConfigError, DataError
from latent_diffusion.registry import nearest

__all__ = ["Picture", "RealPictures", "read_pictures", "select"]

SPLIT = "train"  # of a row without the field: all of a plain folder is training data


@dataclass(frozen=True)
class Picture:
    """One real picture: its file, the prompt that asks for it, and its place in the data set.

    `family` is what retrieval ranks: pictures of one concept share it ("" = unknown). Where a picture is a near twin of
    another concept's (`dup_of`), `family` is that concept's, since nobody can tell the two apart, and `twin` is True.
    `table` is the whole row of `metadata.jsonl`.
    """

    file: str
    text: str
    style: str
    family: str
    group: str
    split: str
    twin: bool = False
    table: Row = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class RealPictures:
    """A data set opened for judging: `rows` in file order, pictures read when asked for."""

    source: Files
    rows: tuple[Picture, ...]
    where: str

    def load(self, rows: Sequence[Picture], size: int) -> Tensor:
        """Return the pictures of `rows`, (len(rows), 3, size, size) float32 in [-1, 1].

        Raises:
            DataError: a picture is absent or broken.
        """
        images = []
        for row in rows:
            picture = decode_image(self.source.read(row.file), name=f"{self.where}/{row.file}")
            images.append(to_tensor(fit_square(picture, size)))
        return torch.stack(images)

    def batches(self, rows: Sequence[Picture], size: int, batch_size: int = 64) -> Iterator[Tensor]:
        """Yield the pictures of `rows` in order, as `load` does, at most `batch_size` at a time."""
        for start in range(0, len(rows), batch_size):
            yield self.load(rows[start : start + batch_size], size)

    @property
    def has_concepts(self) -> bool:
        """Whether every picture has a style and a family, which retrieval needs."""
        return all(row.style and row.family for row in self.rows)


def read_pictures(path: str | os.PathLike[str]) -> RealPictures:
    """Open the image folder (or .zip of one) at `path`.

    Raises:
        DataError: not a data set, a broken table, or a row without `text`.
    """
    source = open_files(path)
    table = read_rows(source, str(path))
    if not table:
        raise DataError(f"{path}: holds no pictures")
    by_code = {(row.get("style"), row["codepoint"]): row for row in table if "codepoint" in row}
    rows = []
    for row in table:
        captions = captions_of(row, "text")
        if not captions:
            raise DataError(f"{path}: row {row['file_name']!r} has no `text`; each picture needs a prompt")
        values = {key: str(row.get(key, "")) for key in ("style", "family", "group")}
        twin = by_code.get((row.get("style"), row.get("dup_of")))
        if twin is not None:
            values["family"] = str(twin.get("family", ""))
        split = str(row.get("split", SPLIT))
        name = str(row["file_name"])
        rows.append(Picture(name, captions[0], **values, split=split, twin=twin is not None, table=row))
    return RealPictures(source, tuple(rows), Path(path).name)


def select(rows: Sequence[Picture], where: Mapping[str, Sequence[str]]) -> list[Picture]:
    """Return the rows whose every named field of the table has (one of) the values listed for it.

    Args:
        rows: pictures.
        where: field of `metadata.jsonl` -> accepted values, as in a run's `data.where`.

    Raises:
        ConfigError: a field or a value no row has.
    """
    fields = sorted({field for row in rows for field in row.table})
    for name, accepted in where.items():
        if name not in fields:
            raise ConfigError(f"cannot filter by {name!r}; there are {', '.join(fields)}{nearest(name, fields)}")
        present = sorted({value for row in rows for value in values_of(row.table, name)})
        for value in accepted:
            if value not in present:
                shown = ", ".join(present[:12]) + (", ..." if len(present) > 12 else "")
                raise ConfigError(f"no picture has {name}={value}; there are {shown}{nearest(value, present)}")
    return [row for row in rows if all(values_of(row.table, name) & set(accepted) for name, accepted in where.items())]
