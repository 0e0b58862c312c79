"""Work that several processes divide. Each writes a part of a file of rows by itself, and the last one to
finish puts the parts together.

While FILE is made in parts there is a folder `FILE.parts`. In it process 0 of 2 writes `0-of-2.jsonl`, and
records beside it what it was asked. What is worked on at the same time is a block, and blocks are dealt out
whole. So each process computes what one process alone would compute for its blocks, to the last bit, and the
parts together are the rows of that one.
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rationalyst_jax.files.interruption import Interrupted
from rationalyst_jax.files.lock import Busy, locked
from rationalyst_jax.files.rows import Row, finished_rows, write_rows
from rationalyst_jax.files.settings import begun, claimed

_PART = re.compile(r"(\d+)-of-(\d+)\.jsonl")
_SECONDS_BETWEEN_LOOKS = 2
_SECONDS_WITHOUT_SIGN = 600  # so long a process waits for one that it sees nothing of


class OthersAtWork(Exception):
    """Raised once a process has done its part, and another one is to put the parts together; says so."""


@dataclass(frozen=True)
class HostShard:
    """The part of the work that is this process's: `number`, from 0, of so many. Raises ValueError for a
    number that is out of range."""

    number: int = 0
    of: int = 1

    def __post_init__(self):
        if self.of < 1 or not 0 <= self.number < self.of:
            raise ValueError(f"{self}: of N shards the first is 0/N and the last (N-1)/N")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


ALONE = HostShard()


@dataclass(frozen=True)
class Waiting:
    """How a process waits for others. tell: is told once for whom. within: others are at work where they work
    on any part below this folder; by default, on the file that is waited for."""

    tell: Callable[[str], None]
    within: Path | None = None


def is_in_parts(file: Path) -> bool:
    """Whether a file is being made in parts, which are not yet put together."""
    return parts_of(file).exists()


def parts_of(file: Path) -> Path:
    """The folder with the parts of a file."""
    return file.with_name(f"{file.name}.parts")


@dataclass(frozen=True)
class DividedFile:
    """A file of rows that one process makes alone, or several in parts.

    Attributes:
        file: JSONL file with one row for each name.
        record: Where the settings are recorded, as `claimed` does it.
        settings: All that decides the rows, as JSON values.
        names: Names of what is worked on, in their order.
        block: So many of them are worked on at the same time.
        name_of: The name that a row is of, None where it counts for nothing (what it is about has changed
            since).
        ledger: Where a file of rows has its ledger: JSONL with any number of rows for each name, which is
            their "id".
        check: Raises ValueError where the rows of the file and of all parts (each with its place) are not of
            this work. It is asked before the work begins, and told the file or folder that holds them.
        output: What is made of the file in the end, where the file goes then.
        is_made: Whether the output is there, as this work makes it. It is asked where the file is gone.
    """

    file: Path
    record: Path
    settings: Mapping[str, Any]
    names: Sequence[str]
    block: int
    name_of: Callable[[Row], str | None]
    ledger: Callable[[Path], Path] | None = None
    check: Callable[[Path, Sequence[tuple[str, Row]]], None] | None = None
    output: Path | None = None
    is_made: Callable[[], bool] | None = None

    @contextmanager
    def part(self, shard: HostShard) -> Iterator[tuple[Path, list[int]]]:
        """A context in which this process alone writes its part. Gives the file, which begins with the rows
        that are there already, and the numbers of its names.

        Raises OthersAtWork where the output is made. Raises ValueError for parts of another number of shards,
        for rows that were made with other settings or that `check` refuses, and while another process writes
        the same part.
        """
        path = self._part(shard.number, shard)
        numbers = self._numbers(shard)
        with ExitStack() as claim:
            with locked(self._folder, wait=True):
                if self.is_made is not None and not self.file.exists() and self.is_made():
                    shutil.rmtree(self._folder, ignore_errors=True)
                    raise OthersAtWork(f"shard {shard} has nothing to do: {self._output} is there already")
                self._check(shard)
                claim.enter_context(claimed(path.with_suffix(".config.json"), self.settings, path))
                if not path.exists():
                    self._begin(path, {self.names[number] for number in numbers})
            yield path, numbers

    @contextmanager
    def whole(self, shard: HostShard, wait: Waiting | None = None) -> Iterator[Path]:
        """A context in which this process alone writes the file, which holds the rows of all parts. When it
        ends without an exception the parts are removed.

        A process that is not alone comes here when it has done its part. Where others have not, it raises
        OthersAtWork, or with `wait` it waits for them, while they hold parts or add to them; where they do
        not for ten minutes it raises Interrupted. Raises ValueError as `part`.
        """
        if shard == ALONE:
            self._check(shard)
            with claimed(self.record, self.settings, self.file):
                self._check_rows(shard)
                yield self.file
            return
        own = self._part(shard.number, shard)
        seen, since = None, time.monotonic()
        while True:
            with locked(self._folder, wait=True):
                if wait is None and not own.exists():
                    raise OthersAtWork(f"shard {shard} is done, and another one has made {self._output}")
                self._check(shard)
                missing = self._missing(shard)
                if not missing:
                    with claimed(self.record, self.settings, self.file):
                        self._gather(shard)
                        yield self.file
                    shutil.rmtree(self._folder, ignore_errors=True)
                    return
                if wait is None and not self._numbers(shard):
                    self._leave(own)
                    raise OthersAtWork(f"shard {shard} has nothing to do: others make {self._output}")
            others = ", ".join(f"{number}/{shard.of}" for number in missing)
            if wait is None:
                raise OthersAtWork(
                    f"shard {shard} is done, {others} not yet: the last one to finish makes {self._output}"
                )
            if seen is None:
                wait.tell(f"shard {shard} waits for {others} to finish {self._output}")
            parts = self._parts_at(wait.within or self._folder, missing, shard)
            if parts != seen or any(map(_is_at_work, parts)):
                seen, since = parts, time.monotonic()
            if time.monotonic() - since > _SECONDS_WITHOUT_SIGN:
                raise Interrupted(
                    f"shard {shard} has waited for {others}, and nobody is at work there: start it; "
                    "the same command goes on from here"
                )
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    @property
    def _folder(self) -> Path:
        return parts_of(self.file)

    @property
    def _output(self) -> Path:
        return self.output or self.file

    def _numbers(self, shard: HostShard) -> list[int]:
        """The numbers of the names that a shard works on."""
        return [number for number in range(len(self.names)) if self._owner(number, shard) == shard.number]

    def _part(self, number: int, shard: HostShard) -> Path:
        return self._folder / f"{number}-of-{shard.of}.jsonl"

    def _parts(self, shard: HostShard) -> list[Path]:
        return [self._part(number, shard) for number in range(shard.of)]

    def _parts_at(self, folder: Path, numbers: Sequence[int], shard: HostShard) -> dict[Path, int]:
        """The parts of shards in a folder or below it, and their sizes (bytes)."""
        found: dict[Path, int] = {}
        for number in numbers:
            for path in folder.rglob(self._part(number, shard).name):
                with suppress(FileNotFoundError):  # put together meanwhile
                    found[path] = path.stat().st_size
        return found

    def _owner(self, number: int, shard: HostShard) -> int:
        """The shard that works on a name."""
        return number // self.block % shard.of

    def _check(self, shard: HostShard) -> None:
        """Raises ValueError for work that this shard cannot go on with."""
        for path in sorted(self._folder.glob("*.jsonl")):
            found = _PART.fullmatch(path.name)
            if found and int(found[2]) != shard.of and begun(path):
                of = int(found[2])
                raise ValueError(
                    f"{self._folder}: was begun by {of} shards, and now there is to be {shard}: "
                    f"go on with 0/{of} to {of - 1}/{of}, or remove the folder and what they have made"
                )
        for path in self._parts(shard):
            with claimed(path.with_suffix(".config.json"), self.settings, path, main=False):
                pass
        if shard != ALONE and begun(self.file):
            with claimed(self.record, self.settings, self.file):
                pass
        if shard != ALONE:
            self._check_rows(shard)

    def _check_rows(self, shard: HostShard) -> None:
        if self.check is not None:
            files = (self.file, *self._parts(shard))
            rows = [row for path in files for row in finished_rows(path)]
            self.check(self.file if begun(self.file) else self._folder, rows)

    def _leave(self, part: Path) -> None:
        """Removes a part without names, and the folder where nobody else has begun."""
        ledgers = [] if self.ledger is None else [self.ledger(part)]
        for path in (part, part.with_suffix(".config.json"), *ledgers):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # others are at work in it
            self._folder.rmdir()

    def _begin(self, path: Path, own: set[str]) -> None:
        """Makes a part, of what the file has of it already."""
        if self.ledger is not None:
            found = finished_rows(self.ledger(self.file))
            write_rows(self.ledger(path), [row for _, row in found if row.get("id") in own])
        write_rows(path, [row for _, row in finished_rows(self.file) if self.name_of(row) in own])

    def _missing(self, shard: HostShard) -> list[int]:
        """The shards that are not done."""
        missing = [number for number, path in enumerate(self._parts(shard)) if _is_busy(path)]
        if missing:
            return missing
        files = (self.file, *self._parts(shard))
        there = {self.name_of(row) for path in files for _, row in finished_rows(path)}
        absent = (number for number, name in enumerate(self.names) if name not in there)
        return sorted({self._owner(number, shard) for number in absent})

    def _gather(self, shard: HostShard) -> None:
        """Writes the rows of all parts into the file, in the order of the names. What it holds beside them
        stays. Of a name that was another shard's before two parts may have a row: its owner's counts."""
        parts = [path for path in self._parts(shard) if path.exists()]
        rows: dict[str, Row] = {}
        others: dict[str, Row] = {}
        numbers = {name: number for number, name in enumerate(self.names)}
        for path in (self.file, *parts):
            for _, row in finished_rows(path):
                if (name := self.name_of(row)) is None:
                    others[json.dumps(row)] = row
                elif name not in rows or path == self._part(self._owner(numbers[name], shard), shard):
                    rows[name] = row
        if self.ledger is not None:
            self._gather_ledgers(self.ledger, parts, shard)
        write_rows(self.file, [*(rows[name] for name in self.names if name in rows), *others.values()])

    def _gather_ledgers(
        self, ledger: Callable[[Path], Path], parts: Sequence[Path], shard: HostShard
    ) -> None:
        """Ledgers have their rows block by block. A part's has also those that the file had of its names."""
        numbers = {name: number for number, name in enumerate(self.names)}

        def is_in_a_part(row: Row) -> bool:
            number = numbers.get(str(row.get("id")))
            return number is not None and self._part(self._owner(number, shard), shard) in parts

        rows = [row for _, row in finished_rows(ledger(self.file)) if not is_in_a_part(row)]
        rows += [row for path in parts for _, row in finished_rows(ledger(path))]
        rows.sort(key=lambda row: numbers.get(str(row.get("id")), -1) // self.block)
        write_rows(ledger(self.file), rows)


def _is_busy(part: Path) -> bool:
    """Whether a process is writing a part."""
    if not part.exists():
        return False
    try:
        with locked(part):
            return False
    except Busy:
        return True


def _is_at_work(part: Path) -> bool:
    """As `_is_busy`, for who doesn't have the lock of the folder: under that one parts are claimed."""
    with locked(part.parent, wait=True):
        return _is_busy(part)
