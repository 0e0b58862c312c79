"""Mined rationales as a data set for others: every row with where it is from, with or without the text around
it.

Where the licence of a source forbids to pass its text on, rows have the hash of the document and the span
instead: whoever has the documents puts the text back.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from rationalyst_jax.files.whole import whole
from rationalyst_jax.mine.documents import read_documents
from rationalyst_jax.mine.likelihood_filter import FilteredTriple
from rationalyst_jax.mine.prefilter import PREFILTERED
from rationalyst_jax.mine.store import Provenance, read_filtered, read_provenance

ALL = "all"
KEPT = "kept"
_TEXTS = ("preceding", "following")
_HASH = "document_hash"


@dataclass(frozen=True)
class Published:
    """The rows of one file, and what made them."""

    triples: Sequence[FilteredTriple]
    provenance: Provenance


def filtered_files(path: Path) -> list[Path]:
    """The Parquet file that `filter` wrote, or those of a folder by their names.

    Raises FileNotFoundError for a missing file, ValueError for a folder without any.
    """
    if not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file of rationales")
        return [path]
    if not (files := sorted(path.glob("*.parquet"))):
        raise ValueError(f"{path}: no Parquet file in this folder")
    return files


def publish(
    file: Path, out: Path, without_text: Collection[str], cosines: Mapping[str, float] | None = None
) -> Published:
    """Writes the rows of a file that `filter` wrote to `out/all` and the kept ones to `out/kept`, under its
    name.

    All columns stay, in the order of rows. `document_hash` is added: SHA-256 of the document's text as far as
    its rows reach. So are `base`, `method`, `places`, `candidates`, `round` and `scorer`, which the file's
    settings name, and `prefilter_cosine`, from `cosines` by documents. Rows of the sources `without_text`
    have no preceding and no following text. Raises as `read_filtered` and `read_provenance`, and ValueError
    for a document without a cosine.
    """
    triples = read_filtered(file)
    provenance = read_provenance(file)
    hashes = _document_hashes(triples)
    table = pq.read_table(file)
    column = pa.array([hashes[triple.document_id] for triple in triples], pa.string())
    if _HASH in table.column_names:
        raise ValueError(f"{file}: has a column {_HASH}, so it is published already: give what filter wrote")
    table = table.append_column(_HASH, column)
    for name, (type, value) in _made_how(provenance).items():
        table = table.append_column(name, pa.array([value] * len(triples), type))
    if cosines is not None:
        if missing := next((t.document_id for t in triples if t.document_id not in cosines), None):
            raise ValueError(f"{file}: the prefilter has no document {missing!r}")
        column = pa.array([cosines[triple.document_id] for triple in triples], pa.float64())
        table = table.append_column("prefilter_cosine", column)
    for name in _TEXTS:
        shown = [None if triple.source in without_text else getattr(triple, name) for triple in triples]
        table = table.set_column(table.column_names.index(name), name, pa.array(shown, pa.string()))
    for config, rows in ((ALL, table), (KEPT, table.filter(table["kept"]))):
        with whole(out / config / file.name) as unfinished:
            pq.write_table(rows, unfinished)
    return Published(triples, provenance)


def read_data_set(folder: Path, documents: Path | None = None) -> list[FilteredTriple]:
    """All rows of a data set that `publish` wrote, in order.

    documents: the documents themselves, for rows without text. Raises ValueError where these are missing, or
    one of them is not there or not the same, naming file and document.
    """
    names = [field.name for field in fields(FilteredTriple)]
    rows = [
        (file, row)
        for file in filtered_files(folder / ALL)
        for row in pq.read_table(file, columns=[*names, _HASH]).to_pylist()
    ]
    reach: dict[tuple[Path, str], int] = {}  # how far the rows of a document reach, in the file that has it
    for file, row in rows:
        document = file, row["document_id"]
        reach[document] = max(reach.get(document, 0), row["end"])
    texts: Mapping[str, str] = {}
    if documents is not None:
        texts = {document.id: document.text for document in read_documents(documents)}
    triples = []
    for file, row in rows:
        name = row["document_id"]
        expected = row.pop(_HASH)
        if row["preceding"] is None:
            if name not in texts:
                raise ValueError(f"{file}: the text of document {name!r} is not here: give the documents")
            text = texts[name][: reach[file, name]]
            if _hash(text) != expected:
                raise ValueError(f"{documents}: document {name!r} is not the one that {file} was made from")
            row |= {"preceding": text[: row["start"]], "following": text[row["start"] : row["end"]]}
        triples.append(FilteredTriple(**row))
    return triples


def _made_how(provenance: Provenance) -> dict[str, tuple[pa.DataType, Any]]:
    """What made all rows of a file, by columns: types and values."""
    annotate = cast(Mapping[str, Any], provenance.config.get("annotate") or {"method": "imported"})
    insert = annotate["method"] == "insert"
    return {
        "base": (pa.string(), provenance.config.get("base")),
        "method": (pa.string(), annotate["method"]),
        "places": (pa.string(), annotate["places"] if insert else None),
        "candidates": (pa.int32(), annotate["candidates"] if insert else None),
        "round": (pa.int32(), provenance.config.get("round")),
        "scorer": (pa.string(), provenance.config.get("filter_model")),
    }


def read_cosines(path: Path) -> dict[str, float]:
    """The cosine of every document that was prefiltered, by its id, from the file that the stage wrote or
    all such files in a folder. Raises FileNotFoundError where there is none."""
    files = [path] if path.is_file() else sorted(path.rglob(PREFILTERED))
    if not files:
        raise FileNotFoundError(f"{path}: no {PREFILTERED} here")
    cosines: dict[str, float] = {}
    for file in files:
        try:
            table = pq.read_table(file, columns=["id", "cosine"])
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file}: not what the prefilter wrote: {error}") from None
        if missing := {"id", "cosine"} - {*table.column_names}:
            raise ValueError(f"{file}: not what the prefilter wrote: no column {', '.join(sorted(missing))}")
        cosines |= dict(zip(table["id"].to_pylist(), table["cosine"].to_pylist(), strict=True))
    return cosines


def _document_hashes(triples: Sequence[FilteredTriple]) -> dict[str, str]:
    """Of each document's text up to the end of its last row."""
    last: dict[str, FilteredTriple] = {}
    for triple in triples:
        if triple.document_id not in last or last[triple.document_id].end < triple.end:
            last[triple.document_id] = triple
    return {name: _hash(triple.preceding + triple.following) for name, triple in last.items()}


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()
