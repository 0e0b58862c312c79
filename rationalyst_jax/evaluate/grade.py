"""Traces against questions: who got what right, how often, and whether one system beats another."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import lcm
from pathlib import Path

import numpy as np

from rationalyst_jax.evaluate.answers import read_answers
from rationalyst_jax.evaluate.clusters import effective_size
from rationalyst_jax.evaluate.power import smallest_difference
from rationalyst_jax.evaluate.statistics import difference_interval, holm, mcnemar, proportion_interval
from rationalyst_jax.tasks.question import Question, Verdict
from rationalyst_jax.tasks.task import Task


@dataclass(frozen=True)
class Grade:
    """One question's outcome; an answer of None was never given. `Question.cluster` names the cluster."""

    id: str
    cluster: str
    answer: str | None
    gold: str
    verdict: Verdict

    @property
    def correct(self) -> bool:
        return self.verdict == "right"


@dataclass(frozen=True)
class Summary:
    """The accuracy over n answers to so many questions with its exact 95 % interval, and how many there are
    without a verdict: unanswered, and those that could not be compared with the gold answer. Neither is
    right."""

    accuracy: float
    low: float
    high: float
    n: int
    questions: int
    unanswered: int
    undecided: int


@dataclass(frozen=True)
class Comparison:
    """Accuracy of a minus b on the same questions: its 95 % paired score interval, McNemar's exact p.

    smallest: the smallest true difference that so many questions show with power 0.8 where a share of them as
    large as here is discordant (None: they show none). p_holm: p adjusted for the family of comparisons that
    it belongs to (None: of no family).
    """

    difference: float
    low: float
    high: float
    p: float
    smallest: float | None
    p_holm: float | None = None


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
        Grade(question.id, question.cluster, answer, question.gold, verdict)
        for (answer, question), verdict in zip(given, task.grade(given), strict=True)
    ]
    return Graded(grades[: len(samples)], grades[len(samples) :])


def summarize(grades: Sequence[Grade]) -> Summary:
    """The accuracy of a list of grades; ValueError for none. The samples of a question, and the questions on
    one passage, are a cluster."""
    accuracy = proportion_interval([row.correct for row in grades], [row.cluster for row in grades])
    verdicts = Counter(row.verdict for row in grades)
    return Summary(
        accuracy.mean,
        accuracy.low,
        accuracy.high,
        len(grades),
        len({row.id for row in grades}),
        verdicts["unanswered"],
        verdicts["undecided"],
    )


def compare(a: Sequence[Grade], b: Sequence[Grade]) -> Comparison:
    """How much better a is than b, question by question; ValueError where they graded different ids.

    Samples of a question are paired in their order; where the two have not equally many of a question, each
    side's are repeated until they are. They are one cluster, with the questions on the same passage.
    """
    correct_a = _correct_by_id(a)
    correct_b = _correct_by_id(b)
    match_ids("the first grades", correct_a, "the second", correct_b)
    pairs = [
        (name, samples[i % len(samples)], correct_b[name][i % len(correct_b[name])])
        for name, samples in correct_a.items()
        for i in range(lcm(len(samples), len(correct_b[name])))
    ]
    cluster_of = {row.id: row.cluster for row in a}
    clusters = [cluster_of[name] for name, _, _ in pairs]
    right_a = np.array([right for _, right, _ in pairs], dtype=bool)
    right_b = np.array([right for _, _, right in pairs], dtype=bool)
    difference = difference_interval(right_a, right_b, clusters)
    size = effective_size(right_a.astype(float) - right_b, clusters)
    smallest = smallest_difference(int(size), float((right_a != right_b).mean()))
    p = mcnemar(right_a, right_b, clusters)
    return Comparison(difference.mean, difference.low, difference.high, p, smallest)


def as_family(comparisons: Mapping[str, Comparison]) -> dict[str, Comparison]:
    """The same comparisons as one family: each with its p-value adjusted by Holm's procedure."""
    adjusted = holm([comparison.p for comparison in comparisons.values()])
    return {
        name: replace(comparison, p_holm=p)
        for (name, comparison), p in zip(comparisons.items(), adjusted, strict=True)
    }


def _correct_by_id(grades: Sequence[Grade]) -> dict[str, list[bool]]:
    """Of each question, which of its samples are right."""
    correct: dict[str, list[bool]] = {}
    for row in grades:
        correct.setdefault(row.id, []).append(row.correct)
    return correct


def match_ids(a_name: str, a: Sequence[str] | dict, b_name: str, b: Sequence[str] | dict) -> None:
    """Raises one ValueError that says which ids only one side has."""
    only = [
        f"{len(extra)} ids are only in {name}, as {extra[0]!r}"
        for name, extra in ((a_name, sorted(set(a) - set(b))), (b_name, sorted(set(b) - set(a))))
        if extra
    ]
    if only:
        raise ValueError("; ".join(only))
