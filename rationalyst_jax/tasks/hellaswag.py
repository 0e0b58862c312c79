"""HellaSwag (Zellers et al. 2019, arXiv 1905.07830): which of four endings continues a description?"""

import re

from rationalyst_jax.files.rows import Row, filled_field, id_field, text_field
from rationalyst_jax.tasks import choices, cloze
from rationalyst_jax.tasks.options import option_texts
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.task import Paper, Task, grade_each

ARTIFACT = re.compile(r"\[[^\]\n]*\]")  # of WikiHow's markup, as in "[header]"


def question(row: Row, place: str, default_id: str) -> Question:
    """A row of HellaSwag ({"ind", "activity_label", "ctx_a", "ctx_b", "endings", "label", "split", perhaps
    "source_id"}) as a question. Its text is "activity: beginning", cleaned of WikiHow's markup, as other
    harnesses clean it.

    Raises ValueError naming the place where a key is missing, or the label is none of the endings.
    """
    beginning = text_field(row, "ctx_a", place)
    sentence = text_field(row, "ctx_b", place)
    endings = tuple(map(_clean, option_texts(row.get("endings"), place)))
    label = id_field(row, "label", place)  # a number, or its digits
    if not label.isdecimal() or int(label) >= len(endings):
        raise ValueError(f"{place}: 'label' must be a number below {len(endings)}, found {label!r:.20}")
    activity = filled_field(row, "activity_label", place)
    return Question(
        id_field(row, "ind", place, default=default_id),
        _clean(f"{activity}: {beginning} {sentence.capitalize()}"),
        "ABCDEFGHIJ"[int(label)],
        endings,
        subject=text_field(row, "split_type", place, default=""),
        passage=text_field(row, "source_id", place, default=""),  # the video or the article
        split={"val": "validation"}.get(split := text_field(row, "split", place, default=""), split),
    )


def _clean(text: str) -> str:
    return ARTIFACT.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ")


TASK = Task(
    "hellaswag",
    title="HellaSwag",
    question=question,
    extract=choices.extract,
    flexible=choices.flexible,
    grade=grade_each(choices.correct),
    split="validation",
    size=10042,
    references=("train",),
    homepage="https://rowanzellers.com/hellaswag",
    license="MIT",
    demonstrations="hellaswag",
    paper=Paper(base=58.2, rationalyst=60.3, shots=None),
    cloze=cloze.ending,
)
