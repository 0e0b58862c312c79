"""A question with its gold answer, and the JSON lines that questions and traces are read from."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Question:
    """One row of a task: what the model is asked, and the gold answer in the task's own form."""

    id: str
    text: str
    answer: str


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each with its place "file:line"; blank lines are passed over.

    Raises ValueError naming file and line where a line is not a JSON object, and for a file without rows.
    """
    place = None
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:  # bad JSON and bad UTF-8 alike
                raise ValueError(f"{place}: not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{place}: expected an object, found {line.strip()[:60].decode()}")
            yield place, row
    if place is None:
        raise ValueError(f"{path}: holds no rows")


def text_field(row: dict[str, Any], key: str, place: str) -> str:
    """`row[key]`, which must be text that is not blank; ValueError naming place, key and value otherwise."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}: {key!r} must be text, found {value!r:.60}")
    return value
