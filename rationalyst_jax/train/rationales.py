"""Mined rationales as training examples: what RATIONALYST is fine-tuned on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.files.rows import read_rows
from rationalyst_jax.prompts.prompt import PromptSet, render
from rationalyst_jax.train.examples import Example

_WANTED = {"document_id": str, "preceding": str, "rationale": str, "kept": bool}


def read_rationales(
    path: str | Path, tokenizer: PreTrainedTokenizerBase, prompts: PromptSet
) -> Iterator[Example]:
    """One example per kept row of rationales: preceding text -> rationale, closed.

    `path` is a Parquet file, a folder of them, or a JSONL file; rows are read as they are asked for. The
    prompt has weight 0 and the rationale with its closing weight 1. Rows whose `kept` is false are skipped;
    what has not been filtered has no `kept` and is read whole. An integer `document_id` is taken as text.
    Raises FileNotFoundError for a missing file,
    and ValueError for a column that is missing, a value of another type (naming file and row, or file:line),
    and where no row is kept.
    """
    empty = True
    for file in _files(path):
        for row in _jsonl_rows(file) if file.suffix == ".jsonl" else _parquet_rows(file):
            if row.get("kept", True):
                empty = False
                yield _example(row, tokenizer, prompts)
    if empty:
        raise ValueError(f"{path}: no kept rationale to train on")


def _files(path: str | Path) -> list[Path]:
    """The file itself, or the Parquet files of a folder by their names.

    Raises FileNotFoundError where there is nothing, ValueError for a folder that holds none.
    """
    path = Path(path)
    if path.is_dir():
        if not (shards := sorted(path.glob("*.parquet"))):
            raise ValueError(f"{path}: no Parquet file in this folder")
        return shards
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of rationales")
    return [path]


def _example(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, prompts: PromptSet) -> Example:
    fields = {"preceding": row["preceding"]}
    context, target = render(tokenizer, prompts["rationale"], fields, target=row["rationale"], close=True)
    weights = (0.0,) * len(context) + (1.0,) * len(target)
    return Example((*context, *target), weights, row["document_id"])


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The columns that count, each value of the right type."""
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := [name for name in _WANTED if name not in (*names, "kept")]:
                raise ValueError(f"{path}: no column {', '.join(missing)}")
            for batch in file.iter_batches(1024, columns=[name for name in _WANTED if name in names]):
                for row in batch.to_pylist():
                    number += 1
                    yield _checked(row, f"{path}: row {number}: column ")
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not Parquet: {error}") from None


def _jsonl_rows(path: Path) -> Iterator[dict[str, Any]]:
    for place, row in read_rows(path):
        if missing := [name for name in _WANTED if name not in (*row, "kept")]:
            raise ValueError(f"{place}: no {', '.join(missing)}")
        yield _checked({name: row[name] for name in _WANTED if name in row}, f"{place}: ")


def _checked(row: dict[str, Any], where: str) -> dict[str, Any]:
    if type(row["document_id"]) is int:
        row["document_id"] = str(row["document_id"])
    for name, value in row.items():
        if not isinstance(value, _WANTED[name]):
            words = "text" if _WANTED[name] is str else "true or false"
            raise ValueError(f"{where}{name} must be {words}, found {value!r:.60}")
    return row
