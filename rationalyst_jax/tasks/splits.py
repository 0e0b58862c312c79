"""Which split of a data set a file's rows belong to: said, never guessed."""

import re
from collections.abc import Sequence
from pathlib import Path

from rationalyst_jax.files.rows import read_table
from rationalyst_jax.tasks.question import Question
from rationalyst_jax.tasks.task import Task

_SAME = {"training": "train", "dev": "validation", "val": "validation", "valid": "validation"}
_SPLITS = ("train", "validation", "test")


def split_called(name: str) -> str:
    """A split's name in TFDS: dev and val are validation."""
    return _SAME.get(name, name)


def sorted_into_splits(task: Task, files: Sequence[str]) -> dict[str, list[Question]]:
    """The questions of a task's files by their splits, in the order of files and rows.

    Each of `files` is SPLIT=FILE, or a FILE alone. Of a file alone each row goes to the split that the row
    itself names, and otherwise to the one split (train, validation, dev, val, test) that the file's name
    names. So no row of a test set becomes one to learn from because nobody said what it is.

    Raises ValueError as `Task.read`, for a row that names another split than it is given to, one of which
    nothing says the split, and for an id that is twice in a split.
    """
    splits: dict[str, dict[str, Question]] = {}
    for file in files:
        given, path = given_split(file)
        for place, question in task.placed(read_table(path), path):
            own = split_called(question.split)
            if given and own and own != given:
                raise ValueError(
                    f"{place}: the row says that it is of split {question.split!r}, not {given!r}"
                )
            split = given or own or _named_by(path, place)
            questions = splits.setdefault(split, {})
            if question.id in questions:
                raise ValueError(f"{place}: id {question.id!r} is twice in split {split!r}")
            questions[question.id] = question
    return {split: list(questions.values()) for split, questions in splits.items()}


def given_split(file: str) -> tuple[str | None, Path]:
    """The split and the path of SPLIT=FILE, or None and the path."""
    split, equals, path = file.partition("=")
    return (split_called(split), Path(path)) if equals and split.isidentifier() else (None, Path(file))


def _named_by(path: Path, place: str) -> str:
    """The one split that is a word of a file's name."""
    words = map(split_called, re.findall("[a-z]+", path.stem.lower()))
    found = set(words).intersection(_SPLITS)
    if len(found) != 1:
        raise ValueError(f"{place}: neither the row nor the file's name says which split: write SPLIT={path}")
    return found.pop()
