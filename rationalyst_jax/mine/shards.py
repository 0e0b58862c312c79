"""Documents in shards: what a stage reads, and what it writes of those that stay and those that go."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rationalyst_jax.files.rows import Row, read_file, table_files, table_name, write_rows
from rationalyst_jax.mine.documents import Document, read_shard

# What is to be said of a document, by its number in the shard (from 0) and itself: None where it stays, or a
# row with at least `kept` and, where that is false, the `reason`.
Judge = Callable[[int, Document], Row | None]
KEPT = "kept"
# How many documents of a source met which outcome: "kept", or the reason why not.
Outcomes = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Shard:
    """A file of a table of documents, and the name of the files that are made of it: its path in the table's
    folder, without endings."""

    name: str
    path: Path
    table: Path

    def documents(self) -> Iterator[Document]:
        """Raises as `mine/documents.py::read_shard`."""
        return read_shard(self.path, self.table)


def find_shards(table: Path) -> list[Shard]:
    """The file itself, or the files of a folder in the order of their paths.

    Raises FileNotFoundError where there is nothing, ValueError for a folder without files, one with others,
    and for two files of one name.
    """
    if not table.exists():
        raise FileNotFoundError(f"{table}: no such file of documents, nor a folder of them")
    shards: dict[str, Shard] = {}
    for path in table_files(table):
        inside = path.relative_to(table if table.is_dir() else table.parent)
        name = inside.with_name(table_name(path)).as_posix()
        if name in shards:
            raise ValueError(
                f"{path}: what is made of it has the name of what is made of {shards[name].path}"
            )
        shards[name] = Shard(name, path, table)
    if not shards:
        raise ValueError(f"{table}: no file of documents in this folder")
    return list(shards.values())


def read_verdicts(path: Path) -> Iterator[Row]:
    """What `divide` wrote of a shard."""
    return (row for _, row in read_file(path))


def divide(documents: Iterable[Document], judge: Judge, staying: Path, verdicts_path: Path) -> Outcomes:
    """Writes the documents of a shard that stay to the JSONL file `staying`, and what was said of documents,
    with id and source, to another one.

    Both files are whole. Raises as `documents` does; then neither is written.
    """
    outcomes: dict[str, Counter[str]] = {}
    verdicts: list[Row] = []

    def stay() -> Iterator[Row]:
        for number, document in enumerate(documents):
            verdict = judge(number, document)
            outcome = KEPT
            if verdict is not None:
                verdicts.append({"id": document.id, "source": document.source} | verdict)
                outcome = KEPT if verdict["kept"] else verdict["reason"]
            outcomes.setdefault(document.source, Counter())[outcome] += 1
            if outcome == KEPT:
                yield asdict(document)

    write_rows(staying, stay())
    write_rows(verdicts_path, verdicts)
    return outcomes


def add_outcomes(several: Iterable[Outcomes]) -> dict[str, dict[str, int]]:
    """The outcomes of several shards together."""
    total: dict[str, dict[str, int]] = {}
    for outcomes in several:
        for source, counts in outcomes.items():
            of_source = total.setdefault(source, {})
            for outcome, count in counts.items():
                of_source[outcome] = of_source.get(outcome, 0) + count
    return total
