"""Mined rationales as training examples: what RATIONALYST is fine-tuned on."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from rationalyst_jax.lm.prompt import PromptSet, render
from rationalyst_jax.train.examples import Example


def read_rationales(
    path: str | Path, tokenizer: PreTrainedTokenizerBase, prompts: PromptSet
) -> list[Example]:
    """One example per kept row of a Parquet file of rationales: preceding text -> rationale, closed.

    The prompt has weight 0 and the rationale with its closing weight 1. Rows whose `kept` is false are
    skipped; a file that has not been filtered has no `kept` and is read whole. Raises FileNotFoundError for
    a missing file, ValueError for a column that is missing or of another type, or a file without a kept row.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of rationales")
    rows = [row for row in _rows(path) if row.get("kept", True)]
    if not rows:
        raise ValueError(f"{path}: no kept rationale to train on")
    examples = []
    for row in rows:
        fields = {"preceding": row["preceding"]}
        context, target = render(tokenizer, prompts["rationale"], fields, target=row["rationale"], close=True)
        weights = (0.0,) * len(context) + (1.0,) * len(target)
        examples.append(Example((*context, *target), weights, row["document_id"]))
    return examples


def _rows(path: Path) -> list[dict[str, Any]]:
    """The columns that count, each value of the right type."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not Parquet: {error}") from None
    wanted = {"document_id": str, "preceding": str, "rationale": str, "kept": bool}
    if missing := [name for name in wanted if name not in (*table.column_names, "kept")]:
        raise ValueError(f"{path}: no column {', '.join(missing)}")
    rows = table.select([name for name in wanted if name in table.column_names]).to_pylist()
    for number, row in enumerate(rows, start=1):
        for name, value in row.items():
            if not isinstance(value, wanted[name]):
                words = "text" if wanted[name] is str else "true or false"
                raise ValueError(f"{path}: row {number}: column {name} must be {words}, found {value!r:.60}")
    return rows
