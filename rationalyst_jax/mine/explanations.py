"""Explanations that people wrote, to be compared with mined rationales at the same places."""

from collections.abc import Mapping
from pathlib import Path

from rationalyst_jax.files.rows import Row, id_field, read_table, text_field
from rationalyst_jax.mine.triples import Triple

Explanations = Mapping[tuple[str, int | None], str]


def read_explanations(path: Path) -> Explanations:
    """Explanations by document id and place: the character of the document, None for every place of it.

    A row has id (that of the document, as the documents that were mined give it) and explanation; with start,
    it is about the text from that character on. These originals are read as they are: ECQA's rows have id and
    explanation; MMLU-Pro's have question_id and cot_content, which is taken without its "A:", and where it is
    empty there is no explanation. JSONL, JSON, CSV or Parquet.

    Raises ValueError naming file and row for a malformed one, and for two at one place.
    """
    found: dict[tuple[str, int | None], str] = {}
    for place, row in read_table(path):
        id = id_field(row, "id" if "id" in row else "question_id", place)
        key = id, _start(row, place)
        if key in found:
            where = "" if key[1] is None else f" at {key[1]}"
            raise ValueError(f"{place}: document {id!r} has two explanations{where}")
        if "explanation" in row or "cot_content" not in row:
            text = text_field(row, "explanation", place)
        else:
            text = text_field(row, "cot_content", place).removeprefix("A:")
        if text.strip():
            found[key] = text.strip()
    if not found:
        raise ValueError(f"{path}: all explanations are empty")
    return found


def explanation_at(explanations: Explanations, triple: Triple) -> str | None:
    """The explanation of the text that follows a rationale, or else that of its whole document."""
    name = triple.document_id
    return explanations.get((name, triple.start), explanations.get((name, None)))


def _start(row: Row, place: str) -> int | None:
    start = row.get("start")
    if isinstance(start, str) and start.isascii() and start.isdigit():  # a CSV's values are text
        start = int(start)
    if start is not None and (not isinstance(start, int) or isinstance(start, bool)):
        raise ValueError(f"{place}: 'start' must be an integer, found {start!r:.60}")
    return start
