"""Data sets of TFDS's own catalog as rows of the original files, so that a task reads both alike.

A catalog's set that somebody has prepared as ArrayRecord is read; none is downloaded. The catalog sorts rows
by a hash and keeps no id of GSM8K's and HellaSwag's, so a question's id there is its place in the split.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rationalyst_jax.files.rows import Row

SENTENCE_END = re.compile(r"[.!?]['\")]*(?= )")


@dataclass(frozen=True)
class CatalogSet:
    """task: whose questions it holds. original: one of its rows as the task's own files have it."""

    task: str
    original: Callable[[Row], Row]


def _gsm8k(row: Row) -> Row:
    return {"question": row["question"], "answer": row["answer"]}


def _hellaswag(row: Row) -> Row:
    """The catalog joins the context's two halves. The second, there in ActivityNet's rows alone, is what
    follows the last sentence: so it is in all of 1,000 original rows."""
    context = row["context"]
    end = len(context)
    if row["source_id"].startswith("activitynet"):
        end = max((found.end() for found in SENTENCE_END.finditer(context)), default=0)
    return {
        **{name: row[name] for name in ("activity_label", "endings", "split_type", "source_id", "label")},
        "ctx": context,
        "ctx_a": context[:end],
        "ctx_b": context[end:].removeprefix(" "),
    }


def _arc(row: Row) -> Row:
    choices = row["choices"]
    labels = [_letter(label) for label in choices["label"]]
    return {
        "id": row["id"],
        "question": row["question"],
        "choices": {"text": choices["text"], "label": labels},
        "answerKey": _letter(row["answerKey"]),
    }


def _letter(label: int) -> str:
    return "ABCDE"[label]


# By NAME or NAME/CONFIG.
CATALOG: Mapping[str, CatalogSet] = {
    "gsm8k": CatalogSet("gsm8k", _gsm8k),
    "hellaswag": CatalogSet("hellaswag", _hellaswag),
    "ai2_arc/ARC-Challenge": CatalogSet("arc", _arc),
}
