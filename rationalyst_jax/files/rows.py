"""Rows of tables: read with the place of every mistake; JSON lines are also written, in blocks, so that a
killed run can continue."""

import csv
import io
import json
import math
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from rationalyst_jax.files.whole import naming, whole

csv.field_size_limit(2**31 - 1)  # a document is one field

Row = dict[str, Any]
Reject = Callable[[ValueError], None]  # is told what is wrong with a row that is left out, or raises it

# What a text file's last ending says of its compression, and the codec's name in Arrow.
_CODECS = {".gz": "gzip", ".zst": "zstd"}


def refuse(error: ValueError) -> None:
    """Rejects a row, and with it everything."""
    raise error


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The objects of a JSONL file, each with its place "file:line"; blank lines are passed over. A file that
    ends in .gz or .zst is decompressed.

    Raises ValueError naming file and line where a line is not a JSON object, or holds what cannot be written
    again (NaN, half of a surrogate pair), for a file without rows, and for one that is not compressed as it
    is called, or was cut off.
    """
    yield from _not_empty(path, _read_lines(path, refuse))


def read_table(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a table in any of the formats that data sets come in, by the file's ending.

    .json: a list of objects. .csv: with a header; all values are text. .parquet. Everything else is JSONL
    (`read_rows`), and so is a .json that opens no list. All but Parquet may be compressed (.gz, .zst). Of a
    folder all files are read, those of its folders too, in the order of their paths; a name that begins with
    "." or "_" is passed over, and a file of it may be empty.

    The place of a row of a list or of Parquet is "file:n", its number from 1 on. Raises ValueError naming the
    file for one that is not what it is called, and in a folder for one that is none of the above; and for a
    table that holds no rows.
    """
    yield from _not_empty(path, (row for file in table_files(path) for row in read_file(file)))


def read_file(path: Path, reject: Reject = refuse) -> Iterator[tuple[str, Row]]:
    """The rows of one file of a table, which may have none; otherwise as `read_table`. `reject` gets the
    error of each malformed row; a file that is not what it is called is refused in any case."""
    return _FORMATS.get(table_format(path), _read_lines)(path, reject)


def table_files(path: Path) -> list[Path]:
    """The file itself, or the files of a folder as `read_table` reads them; raises as it does."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in _files_in(path) if not _passed_over(file, path))
    for file in files:
        if table_format(file) not in _FORMATS:
            endings = ", ".join(sorted(_FORMATS))
            raise ValueError(f"{file}: a folder of rows holds files that end in {endings} (.gz, .zst) alone")
    return files


def check_outside(table: Path, out: Path, *written: str) -> None:
    """Raises ValueError for an output in the folder that is read, for the next run would read it, and for a
    table that is or lies in what is `written` into the folder `out`, for that would be replaced."""
    if table.is_dir() and out.resolve().is_relative_to(table.resolve()):
        raise ValueError(f"{out}: lies in {table}, which is read: write elsewhere")
    for name in written:
        if table.resolve().is_relative_to((out / name).resolve()):
            raise ValueError(f"{table}: is among what is written to {out}: write elsewhere")


def table_format(path: Path) -> str:
    """The ending that says how the rows of a file are written, as ".jsonl" for rows.jsonl.gz."""
    return Path(path.stem).suffix if path.suffix in _CODECS else path.suffix


def table_name(path: Path) -> str:
    """A file's name, or a folder's, without its endings."""
    if path.name in ("", ".."):
        path = path.resolve()
    return Path(path.stem).stem if path.suffix in _CODECS else path.stem


def row_name(table: Path | str, place: str) -> str:
    """A name for the row at a place "file:n" of a table: the table's name and n; of a folder, the path of its
    file in it, without endings, and n."""
    file, _, number = place.rpartition(":")
    inside = Path(file)
    if not inside.is_relative_to(table) or inside == Path(table):  # a table that is one file, or is prepared
        return f"{table_name(Path(table))}-{number}"
    inside = inside.relative_to(table)
    return f"{inside.with_name(table_name(inside)).as_posix()}-{number}"


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
    with whole(path) as unfinished, unfinished.open("wb") as file:
        file.writelines(map(_line, rows))


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
    kept: dict[Any, Row] = {}
    for place, row in finished_rows(path):
        if (key := check(place, row)) is not None:
            kept[key] = row
    os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    return kept


def finished_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a JSONL file that another process may be writing, or was when it was killed, each with its
    place: half a row at the end is none. A file that is not there has none. Raises ValueError as
    `read_rows`."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else ()
    for number, line in enumerate(lines, start=1):
        place = f"{path}:{number}"
        yield place, _parse(line, place)


def _not_empty(path: Path, rows: Iterable[tuple[str, Row]]) -> Iterator[tuple[str, Row]]:
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise ValueError(f"{path}: holds no rows")


def _files_in(folder: Path) -> Iterator[Path]:
    """All files of a folder and its folders, those that links lead to as well."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()  # a link back
            continue
        seen.add(real)
        yield from (Path(place, file) for file in files if Path(place, file).is_file())


def _passed_over(file: Path, folder: Path) -> bool:
    return any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)


def _read_lines(path: Path, reject: Reject) -> Iterator[tuple[str, Row]]:
    with _opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f"{path}:{number}"
                try:
                    row = _parse(line, place)
                except ValueError as error:
                    reject(error)
                    continue
                yield place, row


def _read_json(path: Path, reject: Reject) -> Iterator[tuple[str, Row]]:
    with _opened(path) as file:
        text = file.read()
    text = text.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        return iter(())
    if text.startswith(b"{"):
        return _read_lines(path, reject)
    try:
        rows = json.loads(text.decode("utf-8-sig"), parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of objects, found {json.dumps(rows):.60}")
    return _numbered(path, rows, reject)


def _read_parquet(path: Path, reject: Reject) -> Iterator[tuple[str, Row]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            yield from _numbered(path, rows, reject)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and (error.filename is not None or error.errno is not None):
            raise  # not of the format
        raise ValueError(f"{path}: not Parquet, or damaged: {' '.join(str(error).split())}") from None


def _read_csv(path: Path, reject: Reject) -> Iterator[tuple[str, Row]]:
    with _opened(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        table = csv.DictReader(text, strict=True)
        try:
            for row in table:
                place = f"{path}:{table.line_num}"
                if None in row or None in row.values():
                    reject(ValueError(f"{place}: has another number of columns than the header"))
                else:
                    yield place, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not CSV: {error}") from None


# How a file is read, by its ending.
_FORMATS: Mapping[str, Callable[[Path, Reject], Iterator[tuple[str, Row]]]] = {
    ".jsonl": _read_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _numbered(path: Path, rows: Iterable[Any], reject: Reject) -> Iterator[tuple[str, Row]]:
    for number, row in enumerate(rows, start=1):
        place = f"{path}:{number}"
        if isinstance(row, dict):
            yield place, row
        else:
            reject(ValueError(f"{place}: expected an object, found {json.dumps(row):.60}"))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed where its ending says so. An error of the codec becomes a ValueError."""
    with path.open("rb") as file:
        if path.suffix not in _CODECS:
            yield file
            return
        import pyarrow

        codec = _CODECS[path.suffix]
        try:
            with pyarrow.CompressedInputStream(file, codec) as stream:
                yield cast(BinaryIO, io.BufferedReader(cast(Any, stream)))
        except OSError as error:
            if error.filename is not None or error.errno is not None:
                raise  # not of the codec
            raise ValueError(f"{path}: not {codec}, or damaged: {error}") from None


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
