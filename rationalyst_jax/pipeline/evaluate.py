"""The stage `evaluate`: traces are graded, and compared with those of baselines on the same questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rationalyst_jax.evaluate.grade import Comparison, Summary, as_family, compare, grade, summarize
from rationalyst_jax.files.prepared import Source
from rationalyst_jax.tasks.sources import read_questions
from rationalyst_jax.tasks.task import Task


@dataclass(frozen=True)
class Evaluation:
    """One run's accuracy by the strict and by the flexible reading, and its (strict) differences from each
    baseline but itself."""

    accuracy: Summary
    flexible: Summary
    versus: Mapping[str, Comparison]


def evaluate(
    task: Task,
    questions: Source,
    traces: Mapping[str, Sequence[Path]],
    baselines: Sequence[str] = (),
    *,
    limit: int | None = None,
) -> dict[str, Evaluation]:
    """Grades each run by the first `limit` questions of a source (None: all); answers to others are left out.

    traces: files of each run; several are samples of the same questions. baselines: names among the runs. All
    comparisons with one of them are a family, for which their p-values are adjusted too.
    Raises ValueError for a malformed file, and where traces and questions are not about the same ids.
    """
    known = read_questions(task, questions)
    grades = {name: grade(paths, known, task, limit) for name, paths in traces.items()}
    strict = {name: graded.strict for name, graded in grades.items()}
    families = {
        other: as_family({name: compare(strict[name], strict[other]) for name in strict if name != other})
        for other in baselines
    }
    return {
        name: Evaluation(
            summarize(graded.strict),
            summarize(graded.flexible),
            {other: family[name] for other, family in families.items() if other != name},
        )
        for name, graded in grades.items()
    }
