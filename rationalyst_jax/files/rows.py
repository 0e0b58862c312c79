"""Rows of tables: read with the place of every mistake; JSON lines are also written, in blocks, so that a
killed run can continue."""

import csv
import json
import math
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rationalyst_jax.files.whole import naming, whole

Row = dict[str, Any]
Reject = Callable[[ValueError], None]  # is told what is wrong with a row that is left out, or raises it


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The objects of a JSONL file, each with its place "file:line"; blank lines are passed over.

    Raises ValueError naming file and line where a line is not a JSON object, or holds what cannot be written
    again (NaN, half of a surrogate pair), and for a file without rows.
    """
    empty = True
    for row in read_any_rows(path, refuse):
        empty = False
        yield row
    if empty:
        raise ValueError(f"{path}: holds no rows")


def read_any_rows(path: Path, reject: Reject) -> Iterator[tuple[str, Row]]:
    """As `read_rows`, but `reject` gets the error of each malformed line, and there may be no row at all."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f"{path}:{number}"
                try:
                    row = _parse(line, place)
                except ValueError as error:
                    reject(error)
                    continue
                yield place, row


def refuse(error: ValueError) -> None:
    """Rejects a row, and with it everything."""
    raise error


def read_table(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a table in any of the formats that data sets come in, by the file's ending.

    .json: a list of objects. .csv: with a header; all values are text. .parquet. Everything else is JSONL
    (`read_rows`). The place of a row of a list or of Parquet is "file:n", its number from 1 on. Raises
    ValueError naming the file for one that is not what it is called, or holds no rows.
    """
    match path.suffix:
        case ".json":
            yield from _numbered(path, _read_list(path))
        case ".parquet":
            yield from _numbered(path, _read_parquet(path))
        case ".csv":
            yield from _read_csv(path)
        case _:
            yield from read_rows(path)


def text_field(row: Mapping[str, Any], key: str, place: str, default: str | None = None) -> str:
    """`row[key]`, which must be text, or `default` where the key is missing.

    Raises ValueError naming place, key and value.
    """
    value = row.get(key, default)
    if value is None and key not in row:
        raise ValueError(f"{place}: no {key!r}")
    if not isinstance(value, str):
        raise ValueError(f"{place}: {key!r} must be text, found {value!r:.60}")
    return value


def filled_field(row: Mapping[str, Any], key: str, place: str) -> str:
    """As `text_field`, and not blank."""
    value = text_field(row, key, place)
    if not value.strip():
        raise ValueError(f"{place}: {key!r} is empty")
    return value


def id_field(row: Mapping[str, Any], key: str, place: str, default: str | None = None) -> str:
    """An identifier as text, which may be an integer in the row; `default` where the key is missing; not
    blank.

    Raises ValueError as `text_field`.
    """
    value = row.get(key, default)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return filled_field({key: value} if key in row or default is not None else {}, key, place)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a new file, whole or not at all."""
    with whole(path) as unfinished:
        unfinished.write_bytes(b"".join(map(_line, rows)))


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds finished rows to a file and waits until they are on the disk."""
    with naming(path), path.open("ab") as file:
        file.write(b"".join(map(_line, rows)))
        file.flush()
        os.fsync(file.fileno())


def kept_rows(path: Path, check: Callable[[str, Row], Hashable]) -> dict[Any, Row]:
    """The rows that an earlier run left in an unfinished file, by their keys.

    `check` gets the place "file:line" and the value of a row, and gives its key; None where the row fits this
    run no more; it may refuse the file by raising. A later row of a key replaces an earlier one. What a kill
    left of a row at the end is cut off. The file, and the folder it is in, need not be there yet.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line break is half a row
    kept: dict[Any, Row] = {}
    for number, line in enumerate(lines, start=1):
        place = f"{path}:{number}"
        row = _parse(line, place)
        if (key := check(place, row)) is not None:
            kept[key] = row
    os.truncate(path, sum(len(line) + 1 for line in lines))
    return kept


def _numbered(path: Path, rows: Iterable[Any]) -> Iterator[tuple[str, Row]]:
    number = 0
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: expected an object, found {json.dumps(row):.60}")
        yield f"{path}:{number}", row
    if not number:
        raise ValueError(f"{path}: holds no rows")


def _read_list(path: Path) -> list[Any]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"), parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of objects, found {json.dumps(rows):.60}")
    return rows


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not Parquet: {' '.join(str(error).split())}") from None


def _read_csv(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, strict=True)
        place = None
        try:
            for row in table:
                place = f"{path}:{table.line_num}"
                if None in row or None in row.values():
                    raise ValueError(f"{place}: has another number of columns than the header")
                yield place, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not CSV: {error}") from None
    if place is None:
        raise ValueError(f"{path}: holds no rows")


def _parse(line: bytes, place: str) -> Row:
    try:
        text = line.decode("utf-8-sig")
        row = json.loads(text, parse_float=_finite, parse_constant=_finite)
        if "\\ud" in text or "\\uD" in text:  # perhaps half of a surrogate pair, which no file can hold
            _line(row)
    except (ValueError, RecursionError) as error:  # bad JSON and bad UTF-8 alike
        raise ValueError(f"{place}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected an object, found {json.dumps(row):.60}")
    return row


def _finite(literal: str) -> float:
    if not math.isfinite(number := float(literal)):
        raise ValueError(f"{literal} is no finite number")
    return number


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
