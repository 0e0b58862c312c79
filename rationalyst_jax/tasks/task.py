"""The tasks there are: each is one small file with the functions that `Task` names, and an entry here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rationalyst_jax.tasks import gsm8k
from rationalyst_jax.tasks.question import Question


@dataclass(frozen=True)
class Task:
    """What evaluation needs to know of a benchmark.

    `read` raises ValueError naming file and line for a malformed row. `extract`, the strict reading, gives
    the answer that a text states, or None; `flexible` gives the last thing in it that could be an answer, as
    other harnesses do, or None. `correct(answer, gold)` compares what they gave with a gold answer.
    """

    name: str
    read: Callable[[Path], list[Question]]
    extract: Callable[[str], str | None]
    flexible: Callable[[str], str | None]
    correct: Callable[[str | None, str], bool]


TASKS = {
    task.name: task for task in (Task("gsm8k", gsm8k.read, gsm8k.extract, gsm8k.flexible, gsm8k.correct),)
}


def task_named(name: str) -> Task:
    """The task of that name; ValueError listing the names there are otherwise."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}: there are {', '.join(sorted(TASKS))}")
    return TASKS[name]
