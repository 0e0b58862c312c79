"""Unlabeled documents, and what a model wrote about them: a copy, or rationales for places; in tables."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rationalyst_jax.files.rows import (
    Reject,
    Row,
    filled_field,
    id_field,
    read_file,
    read_table,
    refuse,
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


@dataclass(frozen=True)
class SampledRationale:
    """A rationale as a model wrote it, and why it stopped: "stop", "end" or "length"."""

    text: str
    finish: str


@dataclass(frozen=True)
class SampledPlace:
    """What a model wrote when it was shown document[:start], to lead to document[start:end].

    seed: of the noise of all candidates, which stand in the order of their numbers.
    """

    start: int
    end: int
    seed: int
    candidates: tuple[SampledRationale, ...]


@dataclass(frozen=True)
class Insertion:
    """Rationales sampled for places of `document`, by ascending start; a place ends where the next begins.

    finish: "sampled", or "too_long" for a document whose places the model was not shown.
    """

    document: Document
    places: tuple[SampledPlace, ...]
    finish: str


Annotated = Annotation | Insertion


def annotated_row(annotated: Annotated) -> Row:
    """The row that `read_annotations` reads as this."""
    document = annotated.document
    row: Row = {"id": document.id, "source": document.source, "input": document.text}
    if isinstance(annotated, Annotation):
        row["output"] = annotated.output
    else:
        row["places"] = [
            asdict(place) | {"candidates": [*map(asdict, place.candidates)]} for place in annotated.places
        ]
    return row | {"finish": annotated.finish}


def read_annotated(row: Row, place: str, document: Document) -> Annotated:
    """What a row says of its document. Raises ValueError naming `place` and what is malformed."""
    if "places" not in row:
        finish = text_field(row, "finish", place, default="imported")
        return Annotation(document, text_field(row, "output", place), finish)
    return Insertion(
        document, _sampled_places(row["places"], place, document), text_field(row, "finish", place)
    )


def read_documents(path: str | Path) -> list[Document]:
    """Reads rows {"text", "id"?, "source"?} of a file, or of a folder of shards (`files/rows.py`).

    id defaults to "<file's name>-<line>", source to the `pile_set_name` of The Pile's `meta`, or else the
    name of the file or folder. Raises ValueError naming file and line for a malformed row, empty text or an
    id met before.
    """
    return [document for *_, document in _documents(read_table(Path(path)), Path(path), "text")]


def read_shard(file: Path, table: Path, reject: Reject = refuse) -> Iterator[Document]:
    """The documents of one file of a folder `table`, as `read_documents` gives them for the folder; none of
    an empty file. A file that is the table itself is read as well. `reject` gets the error of each malformed
    row."""
    rows = read_file(file, reject)
    return (document for *_, document in _documents(rows, table, "text", reject=reject))


def read_annotations(path: str | Path, source: str | None = None) -> list[Annotated]:
    """Reads rows {"input", "output" or "places", "id"?, "source"?, "finish"?}, defaults and errors as
    `read_documents`.

    Our own annotations have this form, and with "output" text that was annotated elsewhere. `source` is that
    of rows which name none; None: the file's name.
    """
    rows = _documents(read_table(Path(path)), Path(path), "input", source)
    return [read_annotated(row, place, document) for place, row, document in rows]


def _sampled_places(values: Any, where: str, document: Document) -> tuple[SampledPlace, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{where}: 'places' must be a list, found {values!r:.60}")
    places = tuple(_sampled_place(value, where) for value in values)
    last = 1
    for place in places:
        if not last <= place.start < place.end <= len(document.text):
            raise ValueError(
                f"{where}: a place from {place.start} to {place.end} is out of order, or outside the text"
            )
        last = place.end
    return places


def _sampled_place(value: Any, where: str) -> SampledPlace:
    numbers = ("start", "end", "seed")
    if (
        not isinstance(value, dict)
        or any(type(value.get(name)) is not int for name in numbers)
        or not isinstance(value.get("candidates"), list)
        or not all(isinstance(one, dict) for one in value["candidates"])
    ):
        raise ValueError(
            f"{where}: a place must have integers {', '.join(numbers)}, and candidates, a list of objects; "
            f"found {value!r:.60}"
        )
    candidates = tuple(
        SampledRationale(text_field(one, "text", where), text_field(one, "finish", where))
        for one in value["candidates"]
    )
    return SampledPlace(value["start"], value["end"], value["seed"], candidates)


def _documents(
    rows: Iterable[tuple[str, Row]],
    table: Path,
    text_key: str,
    source: str | None = None,
    reject: Reject = refuse,
) -> Iterator[tuple[str, Row, Document]]:
    """Each row with its place "file:line" and its document."""
    first_at: dict[str, str] = {}
    for place, row in rows:
        try:
            text = filled_field(row, text_key, place)
            id = id_field(row, "id", place, default=row_name(table, place))
            if id in first_at:
                raise ValueError(f"{place}: id {id!r} was used before, at {first_at[id]}")
            of_row = text_field(row, "source", place, default=source or _pile_set(row) or table_name(table))
        except ValueError as error:
            reject(error)
            continue
        first_at[id] = place
        yield place, row, Document(id, text, of_row)


def _pile_set(row: Row) -> str | None:
    """The part of The Pile that a row of it is from."""
    meta = row.get("meta")
    name = meta.get("pile_set_name") if isinstance(meta, dict) else None
    return name if isinstance(name, str) else None
