"""Where the questions of a benchmark come from."""

from pathlib import Path

from rationalyst_jax.files.settings import file_digest
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.task import Task

Source = str | Path  # a file of a benchmark's own rows


def read_questions(task: Task, source: Source) -> list[Question]:
    """The questions of a source. Raises as `Task.read`."""
    return task.read(Path(source))


def source_digest(source: Source) -> str:
    """A short fingerprint of what a source holds."""
    return file_digest(Path(source))
