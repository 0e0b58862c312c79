"""Answers that are letters of options. (Being written.)"""

from rationalyst_jax.tasks.question import Question


def extract(text: str, question: Question) -> str | None:
    _, stated, letter = text.rpartition("The answer is ")
    return letter[:1] if stated and letter[:1] in question.options else None


def flexible(text: str, question: Question) -> str | None:
    return extract(text, question)


def correct(answer: str, gold: str) -> bool:
    return answer == gold
