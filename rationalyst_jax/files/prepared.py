"""Data sets that TensorFlow Datasets (TFDS) has prepared: found by name, read as ArrayRecord, no TensorFlow.

A prepared set is a folder DIR/NAME/VERSION, or DIR/NAME/CONFIG/VERSION. What is asked for is written
`tfds:NAME[:SPLIT][@DIR]`. Without a DIR it is the one in the environment variable TFDS_DATA_DIR, as in TFDS
itself, or else ~/tensorflow_datasets. Nothing is downloaded, and none of TFDS's own builders is looked for:
the folder says all.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rationalyst_jax.files.rows import Row
from rationalyst_jax.files.settings import digest, file_digest

if TYPE_CHECKING:
    import grain

Source = str | Path  # a file, or tfds:NAME[:SPLIT][@DIR]

_PREFIX = "tfds:"
_WRITTEN = re.compile(r"tfds:(?P<name>\w+(?:/[\w.-]+)?)(?::(?P<split>\w+))?(?:@(?P<folder>.+))?")
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
# What TFDS and its readers may raise for a folder that is missing something, or damaged.
_DAMAGE = (OSError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Wanted:
    """What a source `tfds:NAME[:SPLIT][@DIR]` asks for. name: may be NAME/CONFIG. split: None where it is not
    said. folder: the one that prepared sets are in."""

    name: str
    split: str | None
    folder: Path


@dataclass(frozen=True)
class PreparedSplit:
    """One split of a prepared set, and the folder with the set's files. A row's place is `place:n`, n from 1
    on."""

    name: str
    split: str
    folder: Path

    @property
    def place(self) -> str:
        return f"tfds:{self.name}:{self.split}"


def is_prepared(source: Source) -> bool:
    """Whether a source names a prepared set, and no file."""
    return str(source).startswith(_PREFIX)


def wanted(source: Source) -> Wanted:
    """What `tfds:NAME[:SPLIT][@DIR]` asks for; ValueError where it is written otherwise."""
    found = _WRITTEN.fullmatch(str(source))
    if found is None:
        raise ValueError(f"{source}: a prepared set is written tfds:NAME[:SPLIT][@DIR]")
    folder = found["folder"] or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Wanted(found["name"], found["split"], Path(folder).expanduser())


def prepared_split(asked: Wanted, split: str) -> PreparedSplit:
    """The split that is asked for, or the one named `split`, in the set's newest version.

    Raises ValueError for a set that is not prepared, or not as ArrayRecord, and for a split that it lacks,
    with those there are.
    """
    folder = asked.folder / asked.name
    versions = {tuple(map(int, found.groups())): path for path, found in _versions(folder)}
    if not versions:
        raise ValueError(f"tfds:{asked.name}: no prepared set in {folder}")
    latest = versions[max(versions)]
    info = _builder(latest).info
    if (format := info.file_format.file_suffix if info.file_format else "unknown") != "array_record":
        raise ValueError(f"{latest}: prepared as {format}, and only array_record is read without TensorFlow")
    name = asked.split or split
    if name not in info.splits:
        raise ValueError(
            f"tfds:{asked.name}: no split {name!r} in {latest}: there are {', '.join(info.splits)}"
        )
    return PreparedSplit(asked.name, name, latest)


def prepared_rows(split: PreparedSplit) -> "grain.MapDataset[Row]":
    """The rows of a split as a grain data set, in the order they are stored in, each read when it is asked
    for: for other programs' training loops, to shuffle, batch and resume.

    A row holds str, int, float, lists and dicts of them: text, which TFDS gives as bytes, is decoded, and of
    a class label there is its number. Raises ValueError naming a folder that is damaged.
    """
    import grain

    try:
        source = _builder(split.folder).as_data_source(split.split)
        source[len(source) - 1]
    except _DAMAGE as error:
        raise _damaged(split.folder, error) from error
    return grain.MapDataset.source(source).map(_plain)


def read_prepared(split: PreparedSplit) -> Iterator[tuple[str, Row]]:
    """All rows of `prepared_rows`, each with its place, read by this thread: decoding is Python's, and more
    threads are slower."""
    import grain

    rows = iter(
        prepared_rows(split).to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    )
    try:
        for number, row in enumerate(rows, start=1):
            yield f"{split.place}:{number}", row
    except _DAMAGE as error:
        raise _damaged(split.folder, error) from error


def split_digest(split: PreparedSplit) -> str:
    """A short fingerprint of a prepared set's files and of which split is read."""
    return digest([file_digest(split.folder).encode(), split.split.encode()])


def _versions(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    for path in folder.iterdir() if folder.is_dir() else ():
        if (found := _VERSION.fullmatch(path.name)) and (path / "dataset_info.json").is_file():
            yield path, found


def _builder(folder: Path) -> Any:
    """TFDS's reader of a prepared folder. Raises ValueError where its descriptions cannot be read."""
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError

    try:
        return tfds.builder_from_directory(str(folder))
    except (*_DAMAGE, ParseError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> ValueError:
    reason = str(error).strip().partition("\n")[0]
    return ValueError(f"{folder}: not a complete prepared set: {reason}")


def _plain(value: Any) -> Any:
    """A value of TFDS's with NumPy's types and bytes turned into Python's own."""
    match value:
        case bytes():
            return value.decode()
        case dict():
            return {name: _plain(inner) for name, inner in value.items()}
        case list() | np.ndarray():
            return [_plain(inner) for inner in value]
        case np.generic():
            return _plain(value.item())
        case _:
            return value
