"""The stage `data`: rows become data sets in the form of TensorFlow Datasets, for others and for every stage
that reads `tfds:NAME`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rationalyst_jax.files.preparing import DataSet, prepare
from rationalyst_jax.files.rows import Row
from rationalyst_jax.tasks.splits import given_split, sorted_into_splits
from rationalyst_jax.tasks.task import Task
from rationalyst_jax.tasks.tfds_builders import data_set, question_row
from rationalyst_jax.train import rationales

Progress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class DataSummary:
    """A prepared data set: its name in TFDS, its folder, and how many rows each split has."""

    name: str
    folder: Path
    splits: Mapping[str, int]


def prepare_questions(
    task: Task, files: Sequence[str], out: Path, progress: Progress = lambda done, total, tokens: None
) -> DataSummary:
    """Prepares a task's questions in the folder `out`. `files`, FILE or SPLIT=FILE, are sorted into splits.

    Raises as `tasks/splits.py::sorted_into_splits` and `files/preparing.py::prepare`.
    """
    splits = sorted_into_splits(task, files)
    rows = {split: [question_row(question) for question in found] for split, found in splits.items()}
    return _prepared(data_set(task), rows, out, progress)


def prepare_rationales(
    files: Sequence[str], out: Path, progress: Progress = lambda done, total, tokens: None
) -> DataSummary:
    """Prepares the kept rationales of `files`, FILE (in split train) or SPLIT=FILE, in the folder `out`.

    Raises as `train/rationales.py::kept_rationales` and `files/preparing.py::prepare`.
    """
    splits: dict[str, list[Row]] = {}
    for file in files:
        split, path = given_split(file)
        splits.setdefault(split or "train", []).extend(rationales.kept_rationales(path))
    return _prepared(rationales.data_set(), splits, out, progress)


def _prepared(
    data: DataSet, splits: Mapping[str, Sequence[Row]], out: Path, progress: Progress
) -> DataSummary:
    folder = prepare(data, splits, out, progress)
    return DataSummary(data.name, folder, {split: len(rows) for split, rows in splits.items()})
