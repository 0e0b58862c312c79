"""Unlabeled documents and their annotated copies, as JSON Lines."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


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
    return [document for _, document in _documents(Path(path), text_key="text")]


def read_annotations(path: str | Path) -> list[Annotation]:
    """Reads rows {"input", "output", "id"?, "source"?, "finish"?}, defaults and errors as `read_documents`.

    Both our own annotations and text that was annotated elsewhere have this form.
    """
    path = Path(path)
    return [
        Annotation(document, _string(path, row, "output"), _string(path, row, "finish", "imported"))
        for row, document in _documents(path, text_key="input")
    ]


@dataclass(frozen=True)
class _Row:
    line: int
    fields: Mapping[str, object]


def _documents(path: Path, text_key: str) -> Iterator[tuple[_Row, Document]]:
    line_of_id: dict[str, int] = {}
    for row in _rows(path):
        text = _string(path, row, text_key)
        if not text.strip():
            raise ValueError(f"{path}:{row.line}: {text_key!r} is empty")
        id = _string(path, row, "id", f"{path.stem}-{row.line}")
        if id in line_of_id:
            raise ValueError(f"{path}:{row.line}: id {id!r} was used before, on line {line_of_id[id]}")
        line_of_id[id] = row.line
        yield row, Document(id, text, _string(path, row, "source", path.stem))


def _rows(path: Path) -> Iterator[_Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except ValueError as error:  # not JSON, or not UTF-8
                raise ValueError(f"{path}:{number}: not a row of JSON: {error}") from None
            if not isinstance(fields, dict):
                raise ValueError(f"{path}:{number}: expected a JSON object, found {type(fields).__name__}")
            yield _Row(number, fields)


def _string(path: Path, row: _Row, key: str, default: str | None = None) -> str:
    value = row.fields.get(key, default)
    if value is None:
        raise ValueError(f"{path}:{row.line}: no {key!r}")
    if not isinstance(value, str):
        raise ValueError(f"{path}:{row.line}: {key!r} must be a string, found {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair; no file format can hold it
        raise ValueError(f"{path}:{row.line}: {key!r} is not Unicode text: {error}") from None
    return value
