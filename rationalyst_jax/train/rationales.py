"""Mined rationales as training examples: what RATIONALYST is fine-tuned on."""

from pathlib import Path

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
    a missing file, ValueError for a missing column or a file without a kept row.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of rationales")
    table = pq.read_table(path)
    needed = ("document_id", "preceding", "rationale")
    if missing := [name for name in needed if name not in table.column_names]:
        raise ValueError(f"{path}: no column {', '.join(missing)}")
    columns = [name for name in (*needed, "kept") if name in table.column_names]
    rows = [row for row in table.select(columns).to_pylist() if row.get("kept") is not False]
    if not rows:
        raise ValueError(f"{path}: no kept rationale to train on")
    examples = []
    for row in rows:
        fields = {"preceding": row["preceding"]}
        context, target = render(tokenizer, prompts["rationale"], fields, target=row["rationale"], close=True)
        weights = (0.0,) * len(context) + (1.0,) * len(target)
        examples.append(Example((*context, *target), weights, row["document_id"]))
    return examples
