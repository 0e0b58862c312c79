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
    """Yields another name to write under; when the block ends without an exception it becomes `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    yield unfinished
    os.replace(unfinished, path)


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
