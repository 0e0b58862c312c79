"""Data sets prepared in the form of TensorFlow Datasets (TFDS), whole or not at all, without TensorFlow.

Always as ArrayRecord: TFDS writes tfrecord only with TensorFlow, and loses rows where it writes Parquet.
Rows keep their order: TFDS would sort them by a hash. They are in memory meanwhile, as they are in TFDS.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from rationalyst_jax.files.rows import Row
from rationalyst_jax.files.settings import begun, claimed, digest
from rationalyst_jax.files.whole import naming

_VERSION = "1.0.0"  # to be raised when the fields of a set change

_FEATURES: Mapping[Any, Callable[[], Any]] = {
    str: tfds.features.Text,
    int: lambda: tfds.features.Scalar(np.int64),
    tuple[str, ...]: lambda: tfds.features.Sequence(tfds.features.Text()),
}


@dataclass(frozen=True)
class DataSet:
    """What is prepared: its name in TFDS, the fields of a row by their types (str, int, tuple[str, ...]), and
    what is to be known of it."""

    name: str
    fields: Mapping[str, Any]
    description: str
    homepage: str
    license: str


class _Info(tfds.core.DatasetInfo):
    """Of a set that nobody has published: it is not looked for in a bucket."""

    def initialize_from_bucket(self) -> None:
        pass


def builder_of(data: DataSet) -> type[tfds.core.GeneratorBasedBuilder]:
    """TFDS's builder of a data set, to be made with `splits`, the rows of each by its name, beside TFDS's own
    `data_dir` and file_format="array_record".

    It is not registered in TFDS: what it has prepared is found by its folder.
    """

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = data.name
        VERSION = tfds.core.Version(_VERSION)
        RELEASE_NOTES: ClassVar[dict[str, str]] = {_VERSION: "The first."}

        def __init__(self, *, splits: Mapping[str, Iterable[Row]], **options: Any):
            self._rows = splits
            super().__init__(**options)

        def _info(self) -> tfds.core.DatasetInfo:
            return _Info(
                builder=self,
                description=data.description,
                features=tfds.features.FeaturesDict(
                    {field: _FEATURES[kind]() for field, kind in data.fields.items()}
                ),
                homepage=data.homepage,
                license=data.license,
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(rows) for split, rows in self._rows.items()}

        def _generate_examples(self, rows: Iterable[Row]) -> Iterator[tuple[int, Row]]:
            yield from enumerate(rows)

        # TFDS prints what it is doing, and nothing is downloaded.

        def _log_download_bytes(self) -> None:
            pass

        def _log_download_done(self) -> None:
            pass

    return Builder


def prepare(
    data: DataSet,
    splits: Mapping[str, Sequence[Row]],
    out: Path,
    progress: Callable[[int, int, int], None] = lambda done, total, tokens: None,
) -> Path:
    """Prepares a data set in `out / data.name`, and gives that folder. One that is there already, of the same
    rows, stays as it is.

    The folder appears when all is written: after a kill there is `<name>.unfinished` at most, which the next
    call removes. Raises ValueError for a split whose name TFDS can't read, where other rows are there, and
    while another process writes them.
    """
    for name in splits:
        if name == "all" or not name.isidentifier():
            raise ValueError(
                f"{data.name}: {name!r} is no name of a split: letters, digits and _, and not all"
            )
    target = out / data.name
    total = sum(map(len, splits.values()))
    settings = {
        "version": _VERSION,
        "splits": {name: digest(map(_bytes, rows)) for name, rows in splits.items()},
    }
    with claimed(out / f"{data.name}.config.json", settings, target):
        if begun(target):
            progress(total, total, 0)
            return target
        counted = _counted(splits, lambda done: progress(done, total, 0))
        unfinished = out / f"{data.name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
        try:
            with naming(target):
                builder = builder_of(data)(splits=counted, data_dir=unfinished, file_format="array_record")
                _build(builder)
                os.replace(unfinished / data.name, target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _build(builder: tfds.core.GeneratorBasedBuilder) -> None:
    tfds.disable_progress_bar()  # there is one of our own
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except ImportError as error:  # rows that it sorts on the disk, by TensorFlow's files
        raise ValueError(
            f"{builder.name}: a split of more than 1,000 MiB needs TensorFlow: {error}"
        ) from error


def _counted(
    splits: Mapping[str, Sequence[Row]], progress: Callable[[int], None]
) -> dict[str, Iterator[Row]]:
    """The rows of each split; `progress` is told how many of all are done, now and then."""
    done = 0

    def counted(rows: Sequence[Row]) -> Iterator[Row]:
        nonlocal done
        for row in rows:
            yield row
            done += 1
            if done % 100 == 0:
                progress(done)
        progress(done)

    return {name: counted(rows) for name, rows in splits.items()}


def _bytes(row: Row) -> bytes:
    return json.dumps(row, sort_keys=True).encode()
