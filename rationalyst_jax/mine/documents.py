"""Unlabeled documents and their annotated copies, as JSON Lines."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rationalyst_jax.files.rows import (
    Reject,
    Row,
    filled_field,
    id_field,
    read_any_rows,
    read_rows,
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
    """Reads rows {"text", "id"?, "source"?}; id defaults to "<file stem>-<line>", source to the file stem.

    Raises ValueError naming file and line for a malformed row, empty text or an id met before.
    """
    return [document for *_, document in _documents(Path(path), text_key="text")]


def read_documents_but(path: Path, reject: Reject) -> Iterator[Document]:
    """As `read_documents`, one after the other, but `reject` gets the error of each row that it would refuse,
    and there may be no row at all."""
    first_at: dict[str, str] = {}
    for place, row in read_any_rows(path, reject):
        try:
            document = _document(row, place, path, "text", None, first_at)
        except ValueError as error:
            reject(error)
            continue
        yield document


def read_annotations(path: str | Path, source: str | None = None) -> list[Annotation]:
    """Reads rows {"input", "output", "id"?, "source"?, "finish"?}, defaults and errors as `read_documents`.

    Both our own annotations and text that was annotated elsewhere have this form. `source` is that of rows
    which name none; None: the file stem.
    """
    return [
        Annotation(
            document, text_field(row, "output", place), text_field(row, "finish", place, default="imported")
        )
        for place, row, document in _documents(Path(path), text_key="input", source=source)
    ]


def _documents(path: Path, text_key: str, source: str | None = None) -> Iterator[tuple[str, Row, Document]]:
    """Each row with its place "file:line" and its document."""
    first_at: dict[str, str] = {}
    for place, row in read_rows(path):
        yield place, row, _document(row, place, path, text_key, source, first_at)


def _document(
    row: Row, place: str, path: Path, text_key: str, source: str | None, first_at: dict[str, str]
) -> Document:
    """The document of a row; `first_at` has the places of all ids so far."""
    text = filled_field(row, text_key, place)
    id = id_field(row, "id", place, default=f"{path.stem}-{place.rpartition(':')[2]}")
    if id in first_at:
        raise ValueError(f"{place}: id {id!r} was used before, at {first_at[id]}")
    document = Document(id, text, text_field(row, "source", place, default=source or path.stem))
    first_at[id] = place
    return document
