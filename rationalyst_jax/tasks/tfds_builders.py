"""Each task as a data set in TFDS's form: its rows are the task's own questions, field by field."""

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, get_type_hints

from rationalyst_jax.files.rows import Row
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.task import Task

if TYPE_CHECKING:  # it takes a second to import
    import tensorflow_datasets as tfds

    from rationalyst_jax.files.preparing import DataSet


def set_name(task: Task) -> str:
    """The name of a task's data set in TFDS, whose catalog has sets named like tasks."""
    return f"rationalyst_{task.name}"


def data_set(task: Task) -> "DataSet":
    """The data set of a task's questions."""
    from rationalyst_jax.files.preparing import DataSet

    return DataSet(
        name=set_name(task),
        fields=get_type_hints(Question),
        description=f"Questions of {task.title}, as rationalyst_jax reads them.",
        homepage=task.homepage,
        license=task.license,
    )


def builder_of(task: Task) -> "type[tfds.core.GeneratorBasedBuilder]":
    """TFDS's builder of a task's questions, for programs that prepare them through TFDS itself: that of
    `files/preparing.py::builder_of`, whose rows `question_row` gives."""
    from rationalyst_jax.files import preparing

    return preparing.builder_of(data_set(task))


def question_row(question: Question) -> Row:
    """A question as a row of its task's data set."""
    return asdict(question)


def row_question(row: Row, place: str) -> Question:
    """The question that `question_row` made a row of; ValueError naming the place for any other row."""
    if unknown := sorted(row.keys() - {field.name for field in fields(Question)}):
        raise ValueError(
            f"{place}: was prepared by another version, with {', '.join(unknown)}: prepare it again"
        )
    return Question(**{**row, "choices": tuple(row["choices"])})
