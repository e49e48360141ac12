"""The content of a data set: the rows of its table, or one row for every picture, with the caption that lies beside it.

A table (see `table`) lies at the top, or in the one folder that has all pictures. Without one every picture is a row of
its own, and `name.txt` or `name.caption` beside `name.png` is its `text`.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

from latent_diffusion.data.source import Source
from latent_diffusion.data.table import TABLES, Row, parse_table, read_utf8
from latent_diffusion.errors import DataError

__all__ = ["LOOKED_FOR", "PICTURES", "Row", "captions_of", "endings", "read_rows", "values_of"]

logger = logging.getLogger(__name__)

PICTURES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp")
CAPTIONS = (".txt", ".caption")
UNREAD = (".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".ico", ".raw", ".dng")
LOOKED_FOR = f"{' or '.join(TABLES)}, and NAME{' or NAME'.join(CAPTIONS)} beside each picture"


def read_rows(source: Source, where: str) -> list[Row]:
    """Return the rows of a data set in a stable order; each has at least `file_name`.

    Pictures of formats that are not read are counted in a warning.

    Args:
        source: the data set's files.
        where: the name errors give the data set.

    Raises:
        DataError: a broken line, a row that names a picture that is not there, or several tables or captions where
            one is meant.
    """
    names = source.names()
    table = _table(names, where)
    if table is None:
        unread = [name for name in names if PurePosixPath(name).suffix.lower() in UNREAD]
        if unread:
            logger.warning(
                "%s: %d pictures are left out, since they are not JPEG, PNG, WebP or BMP: %s",
                *(where, len(unread), endings(unread)),
            )
        return _rows_beside(source, names, where)
    folder, place = PurePosixPath(table).parent, f"{where}/{table}"
    rows = parse_table(source.read(table), place)
    stated = [str(row["file_name"]) for row in rows]
    outside = [name for name in stated if name.startswith("/") or ".." in PurePosixPath(name).parts]
    if outside:
        raise DataError(f"{place}: {len(outside)} rows lead out of the data set: {_some(outside)}")
    present = set(names)
    for row in rows:
        row["file_name"] = (folder / str(row["file_name"])).as_posix()
    absent = [name for name, row in zip(stated, rows) if row["file_name"] not in present]
    if absent:
        raise DataError(f"{place}: {len(absent)} of {len(rows)} rows name pictures that do not exist: {_some(absent)}")
    return rows


def endings(names: Iterable[str]) -> str:
    """Return how many files have which ending, for people: "2 .gif, 1 .tif"."""
    counted = Counter(PurePosixPath(name).suffix.lower() or "without ending" for name in names)
    return ", ".join(f"{count} {ending}" for ending, count in counted.most_common(8))


def _table(names: list[str], where: str) -> str | None:
    """Return the name of the table, or None where there is none."""
    found = [name for name in names if PurePosixPath(name).name in TABLES]
    found = [name for name in found if "/" not in name] or found
    if len(found) > 1:
        raise DataError(f"{where}: {len(found)} tables: {_some(found)}; keep one, or give the folder of one")
    if not found or "/" not in found[0]:
        return found[0] if found else None
    folder = PurePosixPath(found[0]).parent
    pictures = [PurePosixPath(name) for name in names if PurePosixPath(name).suffix.lower() in PICTURES]
    others = [str(name) for name in pictures if not name.is_relative_to(folder)]
    if others:
        raise DataError(
            f"{where}: {found[0]} lies in a folder, and {len(others)} pictures lie outside it: {_some(others)}; "
            "put it at the top, or give that folder"
        )
    return found[0]


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")


def _rows_beside(source: Source, names: list[str], where: str) -> list[Row]:
    """Return a row for every picture, with the caption of the file beside it."""
    beside: dict[str, list[str]] = {}
    for name in names:
        if PurePosixPath(name).suffix.lower() in CAPTIONS:
            beside.setdefault(PurePosixPath(name).with_suffix("").as_posix(), []).append(name)
    rows: list[Row] = []
    for name in names:
        if PurePosixPath(name).suffix.lower() in PICTURES:
            files = beside.get(PurePosixPath(name).with_suffix("").as_posix(), [])
            if len(files) > 1:
                raise DataError(f"{where}/{name}: {len(files)} captions, {_some(files)}; keep one")
            row: Row = {"file_name": name}
            if files:
                row["text"] = read_utf8(source.read(files[0]), f"{where}/{files[0]}").strip()
            rows.append(row)
    return rows


def captions_of(row: Row, field: str) -> list[str]:
    """Return the captions a row has under `field`: none, one, or those of a list; blank ones are left out.

    Raises:
        DataError: anything but text or a list of text, an empty list, or text no tokenizer can read.
    """
    value = row.get(field)
    if value is None:
        return []
    texts = value if isinstance(value, list) else [value]
    if isinstance(value, list) and not value:
        raise DataError(f"row {row['file_name']!r}: `{field}` is an empty list")
    captions: list[str] = []
    for text in texts:
        if not isinstance(text, str):
            raise DataError(
                f"row {row['file_name']!r}: `{field}` must be text or a list of text, found {type(text).__name__}"
            )
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise DataError(f"row {row['file_name']!r}: `{field}` holds a NUL or a lone surrogate: {text!r}")
        captions.append(" ".join(text.split()))
    return [text for text in captions if text]


def values_of(row: Row, field: str) -> set[str]:
    """Return the values a filter finds under `field`: none, one, or those of a list, as text."""
    value = row.get(field)
    if value is None:
        return set()
    return {str(item) for item in value} if isinstance(value, list) else {str(value)}
