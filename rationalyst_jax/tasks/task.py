"""What a benchmark is to the rest: how its rows are read, and how answers are found and graded.

Each task is one file beside this one, with a `Task`; `benchmarks.py` lists them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rationalyst_jax.files.rows import Row, read_table, row_name
from rationalyst_jax.tasks.cloze import Cloze
from rationalyst_jax.tasks.question import Question, Verdict


@dataclass(frozen=True)
class Paper:
    """What the paper (arXiv 2410.01044) says of a task: accuracies in % of Llama-3-8B-Instruct alone (`base`)
    and with RATIONALYST, and of its released scripts the number of demonstrations (None: not released)."""

    base: float
    rationalyst: float
    shots: int | None


@dataclass(frozen=True)
class Task:
    """What a benchmark is.

    question: one row (its place "file:line", and the id for a row without one) as a Question; ValueError
    naming the place for a malformed row. extract, the strict reading, gives the answer that a text states, or
    None; flexible gives the last thing in it that could be an answer, as other harnesses do, or None. grade
    compares answers (None: unanswered) with the golds of their questions, all at once.
    split: the one that is evaluated, of `size` questions. references: splits that mining may learn from.
    demonstrations: the file in `prompts/tasks` with the instruction and our own shots. step_end: what ends a
    step of a solution. shots_by_subject: whether shots are drawn among questions of the same subject.
    answer_form: how a solution states the answer `{gold}`. paper: None where the paper lacks the task.
    cloze: the question as a text that its options may continue, for choice by likelihood; None where that is
    not offered.
    """

    name: str
    title: str
    question: Callable[[Row, str, str], Question]
    extract: Callable[[str, Question], str | None]
    flexible: Callable[[str, Question], str | None]
    grade: Callable[[Sequence[tuple[str | None, Question]]], list[Verdict]]
    split: str
    size: int
    references: tuple[str, ...]
    homepage: str
    license: str
    demonstrations: str
    step_end: Literal["line", "sentence"] = "line"
    shots_by_subject: bool = False
    answer_form: str = "The answer is {gold}."
    paper: Paper | None = None
    cloze: Callable[[Question], Cloze] | None = None

    def worked(self, question: Question) -> str:
        """A question's solution, where the data has one, and the statement of its answer."""
        if self.extract(question.solution, question) is not None:
            return question.solution
        stated = self.answer_form.replace("{gold}", question.gold)
        return "\n".join(filter(None, [question.solution, stated]))

    def read(self, path: Path) -> list[Question]:
        """The questions of a file in the benchmark's own format (JSONL, a JSON list, CSV or Parquet).

        A row without an id gets the file's name and its line number. Raises ValueError naming file and line
        for a malformed row, and for an id that is there twice.
        """
        return [question for _, question in self.placed(read_table(path), path)]

    def placed(self, rows: Iterable[tuple[str, Row]], table: Path | str) -> Iterator[tuple[str, Question]]:
        """The questions of rows with their places "file:line", each with its place.

        A row without an id gets one by `row_name`. Raises as `read`.
        """
        seen: set[str] = set()
        for place, row in rows:
            question = self.question(row, place, row_name(table, place))
            if question.id in seen:
                raise ValueError(f"{place}: id {question.id!r} is there twice")
            seen.add(question.id)
            yield place, question


def grade_each(
    correct: Callable[[str, str], bool],
) -> Callable[[Sequence[tuple[str | None, Question]]], list[Verdict]]:
    """A `Task.grade` that compares answer by answer: `correct(answer, gold)`."""

    def verdict(answer: str | None, question: Question) -> Verdict:
        if answer is None:
            return "unanswered"
        return "right" if correct(answer, question.gold) else "wrong"

    return lambda answers: [verdict(answer, question) for answer, question in answers]
