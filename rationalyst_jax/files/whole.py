"""Files that are there as a whole or not at all."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields another name to write under; when the block ends without an exception it becomes `path`.

    An OSError of the block (a full disk, say) names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    with naming(path):
        yield unfinished
        os.replace(unfinished, path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an OSError of the block the name of the file that it lacks where a disk is full."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def check_file(path: Path) -> None:
    """Raises ValueError where a file is to be written and there is a folder: before the work, not after
    it."""
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, a file is to be written")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON value, indented."""
    with whole(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads a JSON value. Raises ValueError naming a file that is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None


def file_name(name: str) -> str:
    """The name of a stage or run as that of a file."""
    return re.sub(r"[^\w.,=@-]", "_", name)
