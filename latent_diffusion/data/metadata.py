"""The table beside the pictures: `metadata.jsonl`, one JSON object a line, or one `.txt` caption a picture.

`file_name` names the picture relative to the folder; every other field is free and may be used to filter or as a
caption. Without a `metadata.jsonl` every picture is a row of its own and `name.txt` beside `name.png` is its `text`.
"""

import json
from pathlib import PurePosixPath

from latent_diffusion.data.source import Source
from latent_diffusion.errors import DataError

__all__ = ["TABLE", "Row", "captions_of", "read_rows", "values_of"]

Row = dict[str, object]
TABLE = "metadata.jsonl"
_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def read_rows(source: Source, where: str) -> list[Row]:
    """Return the rows of a data set in a stable order; each has at least `file_name`.

    Args:
        source: the data set's files.
        where: the name errors give the data set.

    Raises:
        DataError: a broken line, or a row that names a picture that is not there.
    """
    names = source.names()
    if TABLE not in names:
        pictures = [name for name in names if PurePosixPath(name).suffix.lower() in _PICTURES]
        return [_row_beside(source, name, set(names), where) for name in pictures]
    table = f"{where}/{TABLE}"
    rows: list[Row] = []
    offset = 0
    for number, line in enumerate(source.read(TABLE).split(b"\n"), start=1):
        text = _decode(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, f"{table}:{number}", offset)
        offset += len(line) + 1
        if text.strip():
            rows.append(_parse(text, f"{table}:{number}"))
    present = set(names)
    absent = [str(row["file_name"]) for row in rows if row["file_name"] not in present]
    outside = [name for name in absent if name.startswith("/") or ".." in PurePosixPath(name).parts]
    if outside:
        raise DataError(f"{table}: {len(outside)} rows lead out of the data set: {_some(outside)}")
    if absent:
        raise DataError(f"{table}: {len(absent)} of {len(rows)} rows name pictures that are not there: {_some(absent)}")
    return rows


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")


def _row_beside(source: Source, name: str, names: set[str], where: str) -> Row:
    caption = str(PurePosixPath(name).with_suffix(".txt"))
    if caption not in names:
        return {"file_name": name}
    place = f"{where}/{caption}"
    return {"file_name": name, "text": _decode(source.read(caption).removeprefix(b"\xef\xbb\xbf"), place, 0).strip()}


def _decode(line: bytes, place: str, offset: int) -> str:
    try:
        return line.decode("utf-8").rstrip("\r")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise DataError(
            f"{place}: byte {offset + error.start} (0x{byte:02x}) is not UTF-8; save it as UTF-8"
        ) from error


def _parse(text: str, place: str) -> Row:
    def refuse(word: str) -> object:
        raise DataError(f"{place}: {word} is not JSON")

    def unique(pairs: list[tuple[str, object]]) -> Row:
        row: Row = {}
        for key, value in pairs:
            if key in row:
                raise DataError(f"{place}: key {key!r} is there twice")
            row[key] = value
        return row

    try:
        row = json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not a JSON object: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise DataError(f"{place}: nested too deeply") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: a row must be a JSON object, found {type(row).__name__}")
    name = row.get("file_name")
    if not isinstance(name, str) or not name:
        raise DataError(f"{place}: `file_name` must be a file name, found {name!r}")
    return row


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
