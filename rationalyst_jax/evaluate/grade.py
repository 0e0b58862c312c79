"""Traces against questions: who got what right, how often, and whether one system beats another."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rationalyst_jax.evaluate.answers import read_answers
from rationalyst_jax.evaluate.statistics import mcnemar, mean_interval
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


@dataclass(frozen=True)
class Graded:
    """The grades of one run by both readings, sample by sample in the order of the questions."""

    strict: list[Grade]
    flexible: list[Grade]


def grade(
    files: Sequence[Path], questions: Sequence[Question], task: Task, limit: int | None = None
) -> Graded:
    """Grades every question by its answers in each of the files (`answers.py` lists the formats), in the
    order of the questions. Files of one run are samples of the same questions.

    With a limit only so many questions, the first ones, are graded: answers to the others are left out.

    Raises ValueError naming the file, and the row where there is one, for a malformed or repeated trace, and
    where traces and questions are not about the same ids.
    """
    asked = questions[:limit]
    read = [read_answers(path, questions, task) for path in files]
    for path, answers in zip(files, read, strict=True):
        for question in questions[len(asked) :]:
            answers.pop(question.id, None)
        match_ids(str(path), answers, "the questions", [question.id for question in asked])
    samples = [
        (question, answer) for question in asked for answers in read for answer in answers[question.id]
    ]
    given = [(answer.strict, question) for question, answer in samples]
    given += [(answer.flexible, question) for question, answer in samples]
    grades = [
        Grade(question.id, answer, question.gold, verdict)
        for (answer, question), verdict in zip(given, task.grade(given), strict=True)
    ]
    return Graded(grades[: len(samples)], grades[len(samples) :])


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
