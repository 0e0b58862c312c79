"""MMLU-Pro (Wang et al. 2024, arXiv 2406.01574): exam questions of 14 categories with 3 to 10 options.

The letter `answer` is gold; `answer_index` is not read, for they differ in question 3983. "N/A" at the end of
the options is padding, and is not shown.
"""

import re

from rationalyst_jax.files.rows import Row, filled_field, id_field, text_field
from rationalyst_jax.tasks import choices, cloze
from rationalyst_jax.tasks.options import labeled_options
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.task import Paper, Task, grade_each

PADDING = "N/A"
# What opens and closes each chain of thought of the validation split, and says nothing.
OPENING = re.compile(r"\s*A: Let's think step by step\.\s*")
CLOSING = re.compile(r"\s*The answer is \([A-J]\)\.?\s*\Z")


def question(row: Row, place: str, default_id: str) -> Question:
    """A row {"question_id", "question", "options", "answer", "category"}, perhaps with "cot_content", as a
    question.

    Raises ValueError naming the place where a key is missing, or the answer is none of the options.
    """
    texts = row.get("options")
    if isinstance(texts, list):
        while texts and texts[-1] == PADDING:
            texts = texts[:-1]
    labels = list("ABCDEFGHIJ")[: len(texts)] if isinstance(texts, list) else None
    options, gold = labeled_options(labels, texts, id_field(row, "answer", place), place)
    worked = text_field(row, "cot_content", place, default="")
    return Question(
        id_field(row, "question_id", place, default=default_id),
        filled_field(row, "question", place).strip(),
        gold,
        options,
        subject=filled_field(row, "category", place).strip(),
        solution=CLOSING.sub("", OPENING.sub("", worked, count=1)).strip(),
    )


TASK = Task(
    "mmlu_pro",
    title="MMLU-Pro",
    question=question,
    extract=choices.extract,
    flexible=choices.flexible,
    grade=grade_each(choices.correct),
    split="test",
    size=12032,
    references=("validation",),
    homepage="https://github.com/TIGER-AI-Lab/MMLU-Pro",
    license="Apache-2.0",
    demonstrations="mmlu_pro",
    paper=Paper(base=39.6, rationalyst=45.3, shots=5),
    cloze=cloze.exam_letter,
    shots_by_subject=True,
)
