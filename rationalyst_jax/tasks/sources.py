"""Where the questions of a benchmark come from: a file, or a data set that TFDS has prepared."""

from dataclasses import replace
from pathlib import Path

from rationalyst_jax.files.prepared import (
    Source,
    Wanted,
    is_prepared,
    prepared_split,
    read_prepared,
    split_digest,
    wanted,
)
from rationalyst_jax.files.settings import file_digest
from rationalyst_jax.tasks.catalog import CATALOG
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.splits import split_called
from rationalyst_jax.tasks.task import Task
from rationalyst_jax.tasks.tfds_builders import row_question, set_name


def read_questions(task: Task, source: Source, split: str | None = None) -> list[Question]:
    """The questions of a source: a file of the benchmark's own rows, or `tfds:NAME[:SPLIT][@DIR]`.

    NAME is rationalyst_<task>, what `rationalyst data` prepared, or gsm8k, hellaswag or ai2_arc (its config
    ARC-Challenge) of TFDS's catalog. SPLIT is by default `split`, or the one that the task is evaluated on;
    DIR the environment's TFDS_DATA_DIR. Where `split` is one of a task's references, the set may be that of
    the task it is a part of. Raises as `Task.read`, the place of a prepared row being "tfds:NAME:SPLIT:n",
    and ValueError for a set that is not prepared, is another task's, or lacks the split.
    """
    if not is_prepared(source):
        return task.read(Path(source))
    asked = _asked(task, source, split)
    found = prepared_split(asked, split_called(split or task.split))
    if asked.name not in CATALOG:
        return [row_question(row, place) for place, row in read_prepared(found)]
    original = CATALOG[asked.name].original
    rows = ((place, original(row)) for place, row in read_prepared(found))
    return [question for _, question in task.placed(rows, found.split)]


def questions_digest(task: Task, source: Source, split: str | None = None) -> str:
    """A short fingerprint of the file, or the prepared set and its split, that `read_questions` reads."""
    if not is_prepared(source):
        return file_digest(Path(source))
    return split_digest(prepared_split(_asked(task, source, split), split_called(split or task.split)))


def _asked(task: Task, source: Source, split: str | None) -> Wanted:
    """The prepared set that a source asks for, by its full name; ValueError where it is not the task's."""
    asked = wanted(source)
    names = [set_name(task), *(name for name, its in CATALOG.items() if its.task == task.name)]
    if task.part_of is not None and split in task.references:
        names.append(set_name(task.part_of))
    for name in names:
        if asked.name in (name, name.partition("/")[0]):
            return replace(asked, name=name)
    raise ValueError(f"{source}: no questions of {task.name}, which are in {' or '.join(names)}")
