"""The content of a data set: the rows of its table, or one row for every picture, with the caption that lies beside it.

A table (see `table`) lies at the top, or in the one folder that has all pictures. Without one every picture is a row of
its own, and `name.txt` or `name.caption` beside `name.png` is its `text`, `name.mask.png` its mask.
"""

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from latent_diffusion.data.pictures.formats import PICTURES, UNREAD, named
from latent_diffusion.data.places.files import Files
from latent_diffusion.data.rows.table import TABLES, Row, parse_table, read_utf8
from latent_diffusion.errors import DataError

__all__ = ["Row", "captions_of", "endings", "looked_for", "read_rows", "values_of"]

logger = logging.getLogger(__name__)

CAPTIONS = (".txt", ".caption")
MASKS = (".mask", "-masklabel")
"""Ends of the name, before its ending, of a picture that is the mask of another."""


def looked_for(ending: str | None) -> str:
    """Return where captions are looked for, in words; `ending` is that of the files beside pictures, if one is set."""
    beside = CAPTIONS if ending is None else (ending,)
    return f"{' or '.join(TABLES)}, and NAME{' or NAME'.join(beside)} beside each picture"


def read_rows(source: Files, where: str, ending: str | None = None) -> list[Row]:
    """Return the rows of a data set in a stable order; each has at least `file_name`.

    Pictures of formats that are not read are counted in a warning.

    Args:
        source: the data set's files.
        where: the name errors give the data set.
        ending: of caption files, such as `.txt`; None: any of `CAPTIONS`.

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
                "%s: %d pictures are left out, since they are not %s: %s",
                *(where, len(unread), named(), endings(unread)),
            )
        return _rows_beside(source, names, where, (ending,) if ending else CAPTIONS)
    folder, place = PurePosixPath(table).parent, f"{where}/{table}"
    rows = parse_table(source.read(table), place)
    stated = [str(row["file_name"]) for row in rows]
    present = {_composed(name): name for name in names} | {name: name for name in names}
    outside = [name for name in stated if _leads_out(name)]
    if outside:
        raise DataError(f"{place}: {len(outside)} rows lead out of the data set: {_some(outside)}")
    for row in rows:
        row["file_name"] = _present(folder, str(row["file_name"]), present)
        if isinstance(row.get("mask_file"), str):
            row["mask_file"] = _present(folder, str(row["mask_file"]), present)
    absent = [name for name, row in zip(stated, rows) if row["file_name"] not in present]
    if absent:
        raise DataError(f"{place}: {len(absent)} of {len(rows)} rows name pictures that do not exist: {_some(absent)}")
    return rows


def _leads_out(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return name.startswith(("/", "\\")) or ".." in parts or (len(parts) > 0 and parts[0].endswith(":"))


def _present(folder: PurePosixPath, name: str, present: Mapping[str, str]) -> str:
    """Return a name of the table as the files have it: a backslash parts folders where no file is called so."""
    for written in (name, name.replace("\\", "/")):
        plain = (folder / written).as_posix()
        if found := present.get(plain) or present.get(_composed(plain)):
            return found
    return (folder / name).as_posix()


def _composed(name: str) -> str:
    """Return a name with composed letters: disks of macOS have "e" and an accent where others have one letter."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


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


def _rows_beside(source: Files, names: list[str], where: str, captions: tuple[str, ...]) -> list[Row]:
    """Return a row for every picture, with the caption and the mask of the files beside it."""
    beside: dict[str, list[str]] = {}
    for name in names:
        if name.lower().endswith(captions):
            ending = next(ending for ending in captions if name.lower().endswith(ending))
            beside.setdefault(_composed(name[: -len(ending)]), []).append(name)
    pictures = {PurePosixPath(name).with_suffix("").as_posix(): name for name in names if _is_picture(name)}
    masks = {stem.removesuffix(end): name for stem, name in pictures.items() for end in MASKS if stem.endswith(end)}
    masks = {stem: name for stem, name in masks.items() if stem in pictures}
    taken = set(masks.values())
    rows: list[Row] = []
    unread: list[str] = []
    for name in names:
        stem = PurePosixPath(name).with_suffix("").as_posix()
        if _is_picture(name) and name not in taken:
            files = beside.get(_composed(stem), [])
            if len(files) > 1:
                raise DataError(f"{where}/{name}: {len(files)} captions, {_some(files)}; keep one")
            row: Row = {"file_name": name}
            if files:
                data = source.read(files[0])
                try:
                    row["text"] = read_utf8(data, f"{where}/{files[0]}").strip()
                except DataError as error:
                    unread.append(str(error))
            if stem in masks:
                row["mask_file"] = masks[stem]
            rows.append(row)
    if len(unread) > 1:
        shown = "; ".join(unread[:10]) + ("; ..." if len(unread) > 10 else "")
        raise DataError(f"{where}: {len(unread)} captions cannot be read: {shown}")
    if unread:
        raise DataError(unread[0])
    return rows


def _is_picture(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in PICTURES


def captions_of(row: Row, field: str, *, join: bool = True) -> list[str]:
    """Return the captions a row has under `field`: none, one, or those of a list; blank ones are left out.

    Args:
        row: of a table.
        field: its name.
        join: make one line of several; False keeps the ends of lines.

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
        lines = [" ".join(line.split()) for line in ([text] if join else text.splitlines())]
        captions.append("\n".join(line for line in lines if line))
    return [text for text in captions if text]


def values_of(row: Row, field: str) -> set[str]:
    """Return the values a filter finds under `field`: none, one, or those of a list, as text."""
    value = row.get(field)
    if value is None:
        return set()
    return {str(item) for item in value} if isinstance(value, list) else {str(value)}
