"""Documents in shards: what a stage reads, and what it writes of those that stay and those that go."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rationalyst_jax.files.rows import Row, read_rows, write_rows
from rationalyst_jax.mine.documents import Document, document_rows

# What is to be said of a document, by its number in the shard (from 0) and itself: None where it stays, or a
# row with at least `kept` and, where that is false, the `reason`.
Judge = Callable[[int, Document], Row | None]
KEPT = "kept"
DOCUMENTS = "documents"
VERDICTS = "verdicts"
# How many documents of a source met which outcome: "kept", or the reason why not.
Outcomes = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Shard:
    """A JSONL file of documents, and the name that files made of it have."""

    name: str
    path: Path


def find_shards(documents: Path) -> list[Shard]:
    """The file itself, or the JSONL files of a folder in the order of their names.

    Raises FileNotFoundError where there is nothing, ValueError for a folder without such files.
    """
    if documents.is_dir():
        paths = sorted(documents.glob("*.jsonl"))
        if not paths:
            raise ValueError(f"{documents}: no JSONL file in this folder")
    elif not documents.exists():
        raise FileNotFoundError(f"{documents}: no such file of documents, nor a folder of them")
    else:
        paths = [documents]
    return [Shard(path.name.removesuffix(".jsonl"), path) for path in paths]


def read_shard(shard: Shard) -> Iterator[tuple[Row, Document]]:
    """The rows of a shard, each with its document; a shard may be empty. Raises as `read_documents`."""
    if shard.path.stat().st_size:
        yield from ((row, document) for _, row, document in document_rows(shard.path))


def read_verdicts(path: Path) -> Iterator[Row]:
    """What `divide` wrote of a shard."""
    if path.stat().st_size:
        yield from (row for _, row in read_rows(path))


def divide(shard: Shard, judge: Judge, out: Path) -> Outcomes:
    """Writes the documents that stay to `out/documents/NAME.jsonl`, and what was said of documents to
    `out/verdicts/NAME.jsonl`.

    Rows that stay keep all their fields; id and source are written in them where they were understood. A
    verdict has the document's id and source. Both files are whole. Raises as `read_documents`; then neither
    is written.
    """
    outcomes: dict[str, Counter[str]] = {}
    verdicts: list[Row] = []

    def stay() -> Iterator[Row]:
        for number, (row, document) in enumerate(read_shard(shard)):
            names = {"id": document.id, "source": document.source}
            verdict = judge(number, document)
            if verdict is not None:
                verdicts.append(names | verdict)
            kept = verdict is None or verdict["kept"]
            of_source = outcomes.setdefault(document.source, Counter())
            of_source[KEPT if kept or verdict is None else verdict["reason"]] += 1
            if kept:
                yield row | names

    write_rows(out / DOCUMENTS / f"{shard.name}.jsonl", stay())
    write_rows(out / VERDICTS / f"{shard.name}.jsonl", verdicts)
    return outcomes
