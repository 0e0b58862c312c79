"""Unlabeled documents and their annotated copies, read from tables."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rationalyst_jax.files.rows import (
    Row,
    filled_field,
    id_field,
    read_file,
    read_table,
    row_name,
    table_name,
    text_field,
)


@dataclass(frozen=True)
class Document:
    """A piece of unlabeled text; `source` names the data set it is from: the filter has a tau for each."""

    id: str
    text: str
    source: str


@dataclass(frozen=True)
class Annotation:
    """What a model wrote when asked to copy `document` with rationales inserted.

    finish: why it stopped: "stop", "end" or "length" as the engine says it, "too_long" for a document
        that was never given to the model, "imported" for text annotated elsewhere.
    """

    document: Document
    output: str
    finish: str


def read_documents(path: str | Path) -> list[Document]:
    """Reads rows {"text", "id"?, "source"?} of a file, or of a folder of shards (`files/rows.py`).

    id defaults to "<file's name>-<line>", source to the `pile_set_name` of The Pile's `meta`, or else the
    name of the file or folder. Raises ValueError naming file and line for a malformed row, empty text or an
    id met before.
    """
    return [document for *_, document in _documents(read_table(Path(path)), Path(path), "text")]


def read_shard(file: Path, table: Path) -> Iterator[Document]:
    """The documents of one file of a folder `table`, as `read_documents` gives them for the folder; none of
    an empty file. A file that is the table itself is read as well. Raises as `read_documents`."""
    return (document for *_, document in _documents(read_file(file), table, "text"))


def read_annotations(path: str | Path, source: str | None = None) -> list[Annotation]:
    """Reads rows {"input", "output", "id"?, "source"?, "finish"?}, defaults and errors as `read_documents`.

    Both our own annotations and text that was annotated elsewhere have this form. `source` is that of rows
    which name none; None: the file's name.
    """
    return [
        Annotation(
            document, text_field(row, "output", place), text_field(row, "finish", place, default="imported")
        )
        for place, row, document in _documents(read_table(Path(path)), Path(path), "input", source)
    ]


def _documents(
    rows: Iterable[tuple[str, Row]], table: Path, text_key: str, source: str | None = None
) -> Iterator[tuple[str, Row, Document]]:
    """Each row with its place "file:line" and its document."""
    first_at: dict[str, str] = {}
    for place, row in rows:
        text = filled_field(row, text_key, place)
        id = id_field(row, "id", place, default=row_name(table, place))
        if id in first_at:
            raise ValueError(f"{place}: id {id!r} was used before, at {first_at[id]}")
        first_at[id] = place
        default = source or _pile_set(row) or table_name(table)
        yield place, row, Document(id, text, text_field(row, "source", place, default=default))


def _pile_set(row: Row) -> str | None:
    """The part of The Pile that a row of it is from."""
    meta = row.get("meta")
    name = meta.get("pile_set_name") if isinstance(meta, dict) else None
    return name if isinstance(name, str) else None
