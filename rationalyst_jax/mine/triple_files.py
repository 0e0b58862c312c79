"""Triples from wherever they come: Parquet files of ours, or JSON lines, the authors' own too."""

from collections.abc import Sequence
from pathlib import Path

from rationalyst_jax.files.rows import Row, filled_field, id_field, read_table, table_format, text_field
from rationalyst_jax.mine.store import read_triples
from rationalyst_jax.mine.triples import Triple


def read_triple_files(path: Path) -> list[Triple]:
    """Reads a Parquet file that `mine` or `filter` wrote, a folder of them, or a JSONL file; kept or not.

    A JSONL row has preceding (or preceeding, as the authors of arXiv 2410.01044 spell it), rationale and
    following; it may have document_id, index, and source, which is else the file's stem. Rows without a
    document_id are of one document where their preceding texts continue each other: the shortest, at line n,
    names it "<file stem>-<n>"; a blank text is continued by none. Rows without an index are numbered by the
    length of what precedes them. White space on both sides of a place, as in the authors' rows, counts once:
    that of the following text is left out.

    Raises FileNotFoundError for a missing file, and ValueError naming file and row for a malformed or empty
    text, two rows that are the same rationale, and where there is none at all.
    """
    if path.is_dir():
        if not (shards := sorted(path.glob("*.parquet"))):
            raise ValueError(f"{path}: no Parquet file in this folder")
        triples = [triple for shard in shards for triple in read_triples(shard)]
    elif not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of rationales")
    else:
        triples = _read_jsonl(path) if table_format(path) == ".jsonl" else read_triples(path)
    if not triples:
        raise ValueError(f"{path}: holds no rationale")
    _check(path, triples)
    return triples


def _check(path: Path, triples: Sequence[Triple]) -> None:
    met = set()
    for triple in triples:
        where = f"{path}: rationale {triple.index} of document {triple.document_id!r}"
        if empty := [name for name in ("rationale", "following") if not getattr(triple, name).strip()]:
            raise ValueError(f"{where}: {empty[0]} is empty")
        if (triple.document_id, triple.index) in met:
            raise ValueError(f"{where} comes twice")
        met.add((triple.document_id, triple.index))


def _read_jsonl(path: Path) -> list[Triple]:
    places, rows = zip(*read_table(path), strict=True)
    preceding = [_preceding(row, place) for place, row in zip(places, rows, strict=True)]
    names = _documents(preceding, path.stem, places)
    ids = [
        id_field(row, "document_id", place, default=name)
        for row, place, name in zip(rows, places, names, strict=True)
    ]
    counts: dict[str, int] = {}
    triples = {}
    for i in sorted(range(len(rows)), key=lambda i: len(preceding[i])):
        row = rows[i]
        following = filled_field(row, "following", places[i])
        if preceding[i][-1:].isspace():
            following = following.lstrip()
        number = counts.get(ids[i], 0)
        counts[ids[i]] = number + 1
        triples[i] = Triple(
            document_id=ids[i],
            source=text_field(row, "source", places[i], default=path.stem),
            index=_index(row, places[i], number),
            start=len(preceding[i]),
            end=len(preceding[i]) + len(following),
            preceding=preceding[i],
            rationale=filled_field(row, "rationale", places[i]),
            following=following,
        )
    return [triples[i] for i in range(len(rows))]


def _preceding(row: Row, place: str) -> str:
    return text_field(
        row, "preceeding" if "preceding" not in row and "preceeding" in row else "preceding", place
    )


def _index(row: Row, place: str, default: int) -> int:
    index = row.get("index", default)
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < 2**31:
        raise ValueError(f"{place}: 'index' must be an integer from 0 to 2**31 - 1, found {index!r:.60}")
    return index


def _documents(preceding: Sequence[str], stem: str, places: Sequence[str]) -> list[str]:
    """A name for the document of each text: sorted, those that continue a text come right after it. A blank
    text says nothing of its document, and is one of its own."""
    names = [""] * len(preceding)
    name = begins = ""
    for i in sorted(range(len(preceding)), key=lambda i: preceding[i]):
        if not begins.strip() or not preceding[i].startswith(begins):
            name, begins = f"{stem}-{places[i].rpartition(':')[2]}", preceding[i]
        names[i] = name
    return names
