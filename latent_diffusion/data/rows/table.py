"""The forms of a table of pictures: `metadata.jsonl` (one JSON object a line), `.csv` (with a header), `.parquet`.

Each names a picture of the set in `file_name`; every other field is free. A cell of a CSV file is text, an empty one
is a field that the row does not have.
"""

import codecs
import csv
import io
import json
from pathlib import PurePosixPath
from typing import Any

from latent_diffusion.errors import DataError

__all__ = ["TABLES", "Row", "import_pyarrow", "parse_table", "read_utf8"]

Row = dict[str, object]
TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def parse_table(data: bytes, place: str) -> list[Row]:
    """Return the rows of a table; each has at least `file_name`, without a leading "./".

    Args:
        data: what the file holds.
        place: the file's name, whose ending decides its form; errors name it and the line.

    Raises:
        DataError: a line that cannot be read.
    """
    parse = {".csv": _parse_csv, ".parquet": _parse_parquet}.get(PurePosixPath(place).suffix, _parse_jsonl)
    rows = parse(data, place)
    for line, row in rows:
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise DataError(f"{place}:{line}: `file_name` must be a file name, found {name!r}")
        row["file_name"] = PurePosixPath(name).as_posix()
    return [row for _, row in rows]


def read_utf8(data: bytes, place: str, offset: int = 0) -> str:
    """Return text in UTF-8, or in UTF-16 that begins with its byte order mark, without the mark.

    Args:
        data: a whole file, or one line of it.
        place: what errors call it.
        offset: of `data` in the file, for the error.

    Raises:
        DataError: other bytes; the first wrong one is named.
    """
    try:
        if data.startswith(UTF_16):
            return data.decode("utf-16")
        return data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        if error.encoding != "utf-8":
            raise DataError(f"{place}: damaged UTF-16: {error.reason}; save it as UTF-8") from error
        mark = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
        start, byte = offset + mark + error.start, error.object[error.start]
        raise DataError(f"{place}: byte {start} (0x{byte:02x}) is not UTF-8; save it as UTF-8") from error


def _parse_jsonl(data: bytes, place: str) -> list[tuple[int, Row]]:
    if data.startswith(UTF_16):
        data = read_utf8(data, place).encode()
    rows: list[tuple[int, Row]] = []
    offset = 0
    for number, line in enumerate(data.split(b"\n"), start=1):
        text = read_utf8(line, f"{place}:{number}", offset).rstrip("\r")
        offset += len(line) + 1
        if text.strip():
            rows.append((number, _parse_object(text, f"{place}:{number}")))
    return rows


def _parse_object(text: str, place: str) -> Row:
    def refuse(word: str) -> object:
        raise DataError(f"{place}: {word} is not JSON")

    def unique(pairs: list[tuple[str, object]]) -> Row:
        row: Row = {}
        for key, value in pairs:
            if key in row:
                raise DataError(f"{place}: key {key!r} appears twice")
            row[key] = value
        return row

    try:
        row = json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not a JSON object: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise DataError(f"{place}: nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{place}: not a JSON object: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: a row must be a JSON object, found {type(row).__name__}")
    return row


def _parse_csv(data: bytes, place: str) -> list[tuple[int, Row]]:
    reader = csv.reader(io.StringIO(read_utf8(data, place), newline=""), strict=True)
    rows: list[tuple[int, Row]] = []
    try:
        header = next(reader, [])
        if "file_name" not in header:
            raise DataError(f"{place}:1: no column `file_name`; columns are {header}, separated by commas")
        if len(set(header)) != len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise DataError(f"{place}:1: column {twice!r} appears twice")
        for cells in reader:
            if len(cells) != len(header) and cells:
                raise DataError(f"{place}:{reader.line_num}: {len(cells)} cells, but there are {len(header)} columns")
            if cells:
                rows.append((reader.line_num, {name: cell for name, cell in zip(header, cells) if cell.strip()}))
    except csv.Error as error:
        raise DataError(f"{place}:{reader.line_num}: not CSV: {error}") from error
    return rows


def _parse_parquet(data: bytes, place: str) -> list[tuple[int, Row]]:
    pyarrow = import_pyarrow(place)
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{place}: not parquet: {' '.join(str(error).split())[:200]}") from error
    if "file_name" not in table.column_names:
        raise DataError(f"{place}: no column `file_name`; columns are {table.column_names}")
    rows = [{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()]
    return list(enumerate(rows, start=1))


def import_pyarrow(place: str) -> Any:
    """Return pyarrow with its parquet module.

    Raises:
        DataError: it is not installed; `place` is what needs it.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{place}: parquet and arrow files need pyarrow: pip install 'latent_diffusion[data]'"
        ) from error
    return pyarrow
