"""Traces against questions: who got what right, how often, and whether one system beats another."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rationalyst_jax.evaluate.statistics import mcnemar, mean_interval
from rationalyst_jax.files.rows import id_field, read_rows
from rationalyst_jax.tasks.question import Question, Verdict
from rationalyst_jax.tasks.task import Task


@dataclass(frozen=True)
class Grade:
    """One question's outcome; an answer of None was never given."""

    id: str
    answer: str | None
    gold: str
    verdict: Verdict

    @property
    def correct(self) -> bool:
        return self.verdict == "right"


@dataclass(frozen=True)
class Summary:
    """The accuracy over n questions with its 95 % bootstrap interval, and how many were answered at all."""

    accuracy: float
    low: float
    high: float
    n: int
    answered: int


@dataclass(frozen=True)
class Comparison:
    """Accuracy of a minus b on the same questions: its 95 % paired bootstrap interval, McNemar's p."""

    difference: float
    low: float
    high: float
    p: float


def grade(traces: Path, questions: Sequence[Question], task: Task, limit: int | None = None) -> list[Grade]:
    """Grades every question by its trace (JSONL rows with "id" and "answer": text or null), in their order.

    With a limit only so many questions, the first ones, are graded: traces of the others are left out.

    Raises ValueError naming the file, and the row where there is one, for a malformed or repeated trace, and
    where traces and questions are not about the same ids.
    """
    answers: dict[str, str | None] = {}
    for place, row in read_rows(traces):
        name = id_field(row, "id", place)
        if name in answers:
            raise ValueError(f"{place}: question {name!r} has two traces")
        if "answer" not in row or not isinstance(row["answer"], str | None):
            raise ValueError(
                f"{place}: 'answer' must be text or null, found {row.get('answer', 'no such key')!r:.60}"
            )
        answers[name] = row["answer"]
    asked = questions[:limit]
    for question in questions[len(asked) :]:
        answers.pop(question.id, None)
    match_ids(str(traces), answers, "the questions", [question.id for question in asked])
    verdicts = task.grade([(answers[question.id], question) for question in asked])
    return [
        Grade(question.id, answers[question.id], question.gold, verdict)
        for question, verdict in zip(asked, verdicts, strict=True)
    ]


def summarize(grades: Sequence[Grade], seed: int = 0) -> Summary:
    """The accuracy of a list of grades; ValueError where it is empty."""
    accuracy = mean_interval([row.correct for row in grades], seed)
    answered = sum(row.answer is not None for row in grades)
    return Summary(accuracy.mean, accuracy.low, accuracy.high, len(grades), answered)


def compare(a: Sequence[Grade], b: Sequence[Grade], seed: int = 0) -> Comparison:
    """How much better a is than b, question by question; ValueError where they graded different ids."""
    correct_a = {row.id: row.correct for row in a}
    correct_b = {row.id: row.correct for row in b}
    match_ids("the first grades", correct_a, "the second", correct_b)
    pairs = [(right, correct_b[name]) for name, right in correct_a.items()]
    difference = mean_interval([int(right_a) - int(right_b) for right_a, right_b in pairs], seed)
    p = mcnemar(*zip(*pairs, strict=True))
    return Comparison(difference.mean, difference.low, difference.high, p)


def match_ids(a_name: str, a: Sequence[str] | dict, b_name: str, b: Sequence[str] | dict) -> None:
    """Raises one ValueError that says which ids only one side has."""
    only = [
        f"{len(extra)} ids are only in {name}, as {extra[0]!r}"
        for name, extra in ((a_name, sorted(set(a) - set(b))), (b_name, sorted(set(b) - set(a))))
        if extra
    ]
    if only:
        raise ValueError("; ".join(only))
