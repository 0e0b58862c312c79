"""The stage `evaluate`: traces are graded, and compared with those of baselines on the same questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rationalyst_jax.evaluate.grade import Comparison, Summary, compare, grade, summarize
from rationalyst_jax.tasks.sources import Source, read_questions
from rationalyst_jax.tasks.task import Task


@dataclass(frozen=True)
class Evaluation:
    """One run's accuracy, and its differences from each baseline but itself."""

    accuracy: Summary
    versus: Mapping[str, Comparison]


def evaluate(
    task: Task,
    questions: Source,
    traces: Mapping[str, Path],
    baselines: Sequence[str] = (),
    *,
    limit: int | None = None,
) -> dict[str, Evaluation]:
    """Grades each run's traces by the first `limit` questions of a task's file (None: all); traces of the
    others are left out.

    baselines: names among the runs. Raises ValueError for a malformed file, and where traces and questions
    are not about the same ids.
    """
    known = read_questions(task, questions)
    grades = {name: grade(path, known, task, limit) for name, path in traces.items()}
    return {
        name: Evaluation(
            summarize(graded),
            {other: compare(graded, grades[other]) for other in baselines if other != name},
        )
        for name, graded in grades.items()
    }
