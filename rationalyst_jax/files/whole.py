"""Files that are there as a whole or not at all."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields another name to write under; when the block ends without an exception it becomes `path`.

    With an exception a file that was begun is removed. An OSError of the block (a full disk, say) names
    `path`. The other name is the same in every process: whoever may meet another one holds a lock
    (`files/lock.py`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with naming(path):
            yield unfinished
            os.replace(unfinished, path)
    except BaseException:
        if not unfinished.is_dir():
            unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same for a new folder, which the block makes under the other name."""
    with whole(path) as unfinished:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
        try:
            yield unfinished
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an OSError of the block the name of the file that it lacks where a disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def in_words(error: BaseException) -> str:
    """What an error says: one of the system's without its number, and with the file where it names one."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def check_file(path: Path) -> None:
    """Raises ValueError where a file is to be written and a folder stands: before the work, not after it."""
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, a file is to be written")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON value, indented."""
    with whole(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises FileNotFoundError, or ValueError naming a file that holds none."""
    return _read(path, dict, "object")


def read_list(path: Path) -> list[Any]:
    """The JSON list in a file. Raises as `read_json`."""
    return _read(path, list, "list")


def _read(path: Path, kind: type, word: str) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, kind):
        raise ValueError(f"{path}: not a JSON {word}")
    return value


def file_name(name: str) -> str:
    """The name of a stage or run as that of a file."""
    return re.sub(r"[^\w.,=@-]", "_", name)
