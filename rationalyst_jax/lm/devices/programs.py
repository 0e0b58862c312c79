"""Compiled programs: kept on disk between commands, and counted.

Where the user names no folder to JAX (JAX_COMPILATION_CACHE_DIR, or its config), it is
`rationalyst_jax/programs` in the user's cache. JAX's own switch is JAX_ENABLE_COMPILATION_CACHE=false.
JAX's key of a program holds versions, flags and devices too; of a CPU the processor's features, so machines
that share a home directory do not load each other's code.
"""

import os
import re
import threading
import zlib
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from warnings import catch_warnings, filterwarnings

from rationalyst_jax.files.user_cache import user_cache

# jax is imported in functions: the command line must not wait for it.

MOST_BYTES = 2**30  # of all programs on disk; a GPU's or TPU's may have tens of MiB

# JAX's settings; their variables have the same names in capitals.
_FOLDER = "jax_compilation_cache_dir"
_ENABLED = "jax_enable_compilation_cache"
_SHORTEST = "jax_persistent_cache_min_compile_time_secs"

_COMPILED = "/jax/core/compile/backend_compile_duration"  # told of every program, a loaded one too
_LOADED = "/jax/compilation_cache/cache_hits"  # told before
_ENTRY = re.compile(r"(?P<program>.+)-[0-9a-f]{64}-cache")


@dataclass
class Programs:
    """What was compiled, and how many seconds that took; what was loaded from disk instead.

    unkept: the folder in which nothing of it could be kept, if so.
    """

    compiled: int = 0
    seconds: float = 0.0
    loaded: int = 0
    unkept: Path | None = None
    names: set[str] = field(default_factory=set)  # of those compiled, as JAX names their files
    _load: threading.local = field(
        default_factory=threading.local
    )  # whether this thread's next one is loaded

    def __str__(self) -> str:
        """In words; empty where no program was needed."""
        parts = []
        if self.compiled:
            parts.append(f"{self.compiled} compiled in {self.seconds:.{0 if self.seconds >= 10 else 1}f} s")
        if self.loaded:
            parts.append(f"{self.loaded} loaded from disk")
        text = "programs: " + ", ".join(parts) if parts else ""
        return text + (f"; none could be kept in {self.unkept}" if self.unkept else "")

    def _event(self, event: str, **_: str | int) -> None:
        if event == _LOADED:
            self._load.next = True

    def _duration(self, event: str, duration_secs: float, **what: str | int) -> None:
        if event != _COMPILED:
            return
        if getattr(self._load, "next", False):
            self._load.next = False
            self.loaded += 1
        else:
            self.compiled += 1
            self.seconds += duration_secs
            self.names.add(re.sub(r"\W+", "_", str(what.get("fun_name", ""))).strip("_"))


@contextmanager
def programs_kept() -> Iterator[Programs]:
    """Inside, programs are kept on disk, unless JAX is told where or not to, and counted.

    Every program is kept, however quickly it was compiled. One that cannot be written or read is compiled
    again. At the end those that were used longest ago go, if all have more than MOST_BYTES.
    """
    import jax

    programs = Programs()
    free = _read(_ENABLED) and not _read(_FOLDER)
    folder = user_cache("programs") if free else None
    jax.monitoring.register_event_listener(programs._event)
    jax.monitoring.register_event_duration_secs_listener(programs._duration)
    try:
        with nullcontext() if folder is None else _kept_in(folder, programs):
            yield programs
    finally:
        jax.monitoring.unregister_event_listener(programs._event)
        jax.monitoring.unregister_event_duration_listener(programs._duration)


def keep_none() -> None:
    """From here on no program is kept, unless the environment says where.

    For several processes that compile one program together: on GPUs each measures a part of the choices and
    waits for the others' parts, which never come from one that loads what it had compiled before.
    """
    _set({_FOLDER: os.environ.get(_FOLDER.upper())})


@contextmanager
def _kept_in(folder: Path, programs: Programs) -> Iterator[None]:
    """Lets JAX keep programs in a folder of ours, and tidies it."""
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    settings: dict[str, str | float] = {_FOLDER: str(folder)}
    if _SHORTEST.upper() not in os.environ:
        settings[_SHORTEST] = 0.0
    before = {name: _read(name) for name in settings}
    entries = set(_entries(folder))
    _set(settings)
    reset_cache()  # JAX looks at its settings once
    try:
        with catch_warnings():
            # JAX would say of each program that it is compiled again. `unkept` says it once.
            filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
            yield
    finally:
        ours = _read(_FOLDER) == str(folder)  # not after `keep_none`
        if ours and programs.compiled:
            _tidy(folder, programs.names)
            every = not _read(_SHORTEST)
            programs.unkept = folder if every and set(_entries(folder)) == entries else None
        _set(before)
        reset_cache()


def _read(name: str) -> Any:
    import jax

    return getattr(jax.config, name)


def _set(settings: Mapping[str, Any]) -> None:
    import jax

    for name, value in settings.items():
        jax.config.update(name, value)


def _entries(folder: Path) -> dict[Path, re.Match[str]]:
    """The files of programs in a folder, by their names; none of one that is not there or can't be read."""
    try:
        files = list(folder.iterdir())
    except OSError:
        return {}
    return {file: entry for file in files if (entry := _ENTRY.fullmatch(file.name))}


def _tidy(folder: Path, compiled: Container[str]) -> None:
    """Removes what a process that was killed wrote half, which JAX would neither load nor replace; and what
    was used longest ago, where all is more than MOST_BYTES.

    compiled: programs of which an older file may be such a half.
    """
    used: list[tuple[float, int, Path]] = []
    for file, entry in _entries(folder).items():
        with suppress(OSError):  # another process may remove it now
            if entry["program"] in compiled and _is_half(file.read_bytes()):
                file.unlink()
            else:
                stat = file.stat()
                used.append((max(stat.st_atime, stat.st_mtime), stat.st_size, file))
    size = sum(size for _, size, _ in used)
    for _, of_file, file in sorted(used):
        if size <= MOST_BYTES:
            return
        with suppress(OSError):
            file.unlink()
        size -= of_file


def _is_half(data: bytes) -> bool:
    """Whether a file is no whole zlib stream. What JAX packs with zstd, where there is one, is not judged."""
    if not data.startswith((b"x", b"\0")) and data:
        return False
    try:
        zlib.decompress(data)
    except zlib.error:
        return True
    return False
