"""Tasks whose choices are scored, and what lm-evaluation-harness calls them."""

import re
from collections.abc import Callable
from string import ascii_uppercase
from typing import Any

from rationalyst_jax.files.rows import Row
from rationalyst_jax.tasks import cloze
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.task import Task, grade_each


def _hellaswag(text: str) -> str:
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _read_hellaswag(row: Row, place: str, name: str) -> Question:
    text = _hellaswag(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
    choices = tuple(map(_hellaswag, row["endings"]))
    return Question(str(row["ind"]), text, ascii_uppercase[int(row["label"])], choices)


def _read_arc(row: Row, place: str, name: str) -> Question:
    gold = ascii_uppercase[row["choices"]["label"].index(row["answerKey"])]
    return Question(row["id"], row["question"], gold, tuple(row["choices"]["text"]))


def _read_commonsense(row: Row, place: str, name: str) -> Question:
    nested = row["question"]
    return Question(
        row["id"], nested["stem"], row["answerKey"], tuple(one["text"] for one in nested["choices"])
    )


def _read_mmlu_pro(row: Row, place: str, name: str) -> Question:
    return Question(str(row["question_id"]), row["question"], row["answer"], tuple(row["options"]))


def choice_task(name: str, question: Callable[[Row, str, str], Question], form: Any) -> Task:
    return Task(
        name,
        title=name,
        question=question,
        extract=lambda text, _: text,
        flexible=lambda text, _: text,
        grade=grade_each(str.__eq__),
        split="test",
        size=1,
        references=(),
        homepage="",
        license="",
        cloze=form,
    )


TASKS = {
    "hellaswag": choice_task("hellaswag", _read_hellaswag, cloze.ending),
    "arc_challenge": choice_task("arc", _read_arc, cloze.answer_text),
    "commonsense_qa": choice_task("commonsense_qa", _read_commonsense, cloze.answer_letter),
    "leaderboard_mmlu_pro": choice_task("mmlu_pro", _read_mmlu_pro, cloze.exam_letter),
}
