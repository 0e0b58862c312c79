"""What a piece of work was asked, recorded beside it: work asked otherwise is never continued."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rationalyst_jax.files.lock import locked
from rationalyst_jax.files.whole import read_json, write_json

_PACKAGES = (
    *("rationalyst_jax", "jax", "flax", "numpy", "optax", "orbax-checkpoint"),
    *("pyarrow", "rapidfuzz", "tokenizers", "transformers"),
)


@contextmanager
def claimed(path: Path, settings: Mapping[str, Any], work: Path, *, main: bool = True) -> Iterator[None]:
    """A context in which this process alone writes `work`, a file or folder that was asked for like this.

    `settings` (JSON values) are recorded in the file `path`, or equal to those that an earlier run recorded
    there. While `work` holds nothing, what is recorded binds nobody and is replaced. Of several processes
    that write together one is `main`: it locks and records, the others compare. Raises ValueError naming what
    differs, where nothing says how there came to be work, and naming the process that writes it already.
    """
    with locked(work) if main else nullcontext():
        if not begun(work):
            if main:
                write_json(path, settings)
        elif not path.exists():
            raise ValueError(f"{path}: is missing, so nothing says how the work beside it was made")
        elif found := list(differences(read_json(path), json.loads(json.dumps(settings)))):
            raise ValueError(
                f"{path}: made with other settings: {'; '.join(found)}; remove {work} or write elsewhere"
            )
        yield


def begun(work: Path) -> bool:
    """Whether a file has bytes, or a folder entries."""
    return any(work.iterdir()) if work.is_dir() else work.exists() and work.stat().st_size > 0


def differences(made: Any, asked: Any, key: str = "") -> Iterator[str]:
    """One line `key made -> asked` for each JSON value that differs, keys of inner objects dotted."""
    if isinstance(made, dict) and isinstance(asked, dict):
        for name in made | asked:
            yield from differences(made.get(name), asked.get(name), f"{key}.{name}" if key else name)
    elif made != asked:
        yield f"{key} {made!r} -> {asked!r}"


def package_versions() -> dict[str, str]:
    """The versions of the packages that results depend on."""
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):  # run from a checkout that isn't installed
            found[name] = version(name)
    return found


def digest(parts: Iterable[bytes]) -> str:
    """A short fingerprint of a sequence of bytes, as hexadecimal digits."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8))
        sha.update(part)
    return sha.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """A short fingerprint of a file's bytes, or of all files in a folder and their names."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return digest(f"{file.relative_to(path)} {file_digest(file)}".encode() for file in files)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
