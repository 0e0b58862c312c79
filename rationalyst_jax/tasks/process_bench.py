"""ProcessBench (Zheng et al. 2024, arXiv 2412.06559): given solutions, and the first wrong step of each.

People read the solutions step by step and named the first wrong one. What follows it has no label: a step may
be right in itself and rest on a wrong one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rationalyst_jax.files.rows import Row, filled_field, id_field, read_table, text_field
from rationalyst_jax.files.settings import digest

NO_ERROR = -1  # the label of a solution without an error


@dataclass(frozen=True)
class GivenSolution:
    """A solution that somebody wrote: its steps, and the place of the first wrong one (None: none is).

    generator: who wrote it, "" where nobody says.
    """

    id: str
    problem: str
    steps: tuple[str, ...]
    first_error: int | None
    generator: str = ""

    @property
    def problem_key(self) -> str:
        """Equal for solutions of one problem, however its text is spaced."""
        return digest([" ".join(self.problem.split()).encode()])


def read_solutions(path: Path) -> list[GivenSolution]:
    """The solutions of a file in ProcessBench's format (a JSON list, JSONL or Parquet).

    Its keys are id, problem, steps (texts), label (the first wrong step, counted from 0; -1: none is wrong)
    and, where there is one, generator. Raises ValueError naming file and row for a malformed row, a label
    that is no step, a blank step, and an id that is there twice.
    """
    found: dict[str, GivenSolution] = {}
    for place, row in read_table(path):
        given = _solution(row, place)
        if given.id in found:
            raise ValueError(f"{place}: id {given.id!r} is there twice")
        found[given.id] = given
    return list(found.values())


def _solution(row: Row, place: str) -> GivenSolution:
    steps = _steps(row.get("steps"), place)
    return GivenSolution(
        id_field(row, "id", place),
        filled_field(row, "problem", place),
        steps,
        _first_error(row.get("label"), len(steps), place),
        text_field(row, "generator", place, default=""),
    )


def _steps(steps: Any, place: str) -> tuple[str, ...]:
    if not isinstance(steps, list | tuple) or not steps:
        raise ValueError(f"{place}: 'steps' must be a list of texts, found {steps!r:.60}")
    for number, step in enumerate(steps):
        if not isinstance(step, str) or not step.strip():
            raise ValueError(f"{place}: step {number} must be a text that is not blank, found {step!r:.60}")
    return tuple(steps)


def _first_error(label: Any, steps: int, place: str) -> int | None:
    if not isinstance(label, int) or isinstance(label, bool) or not NO_ERROR <= label < steps:
        raise ValueError(
            f"{place}: 'label' must be one of {steps} steps, 0 to {steps - 1}, or -1 for no error, "
            f"found {label!r:.60}"
        )
    return None if label == NO_ERROR else label
