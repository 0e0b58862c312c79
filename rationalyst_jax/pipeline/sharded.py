"""Stages over shards, in worker processes that may die: each stage of each shard is done once.

A stage is a function from files of a shard to files of that shard. What a run has done is in its folder:

    STAGE/SHARD/                what the stage made of the shard
    STAGE/                      what a stage over all shards made
    stages/STAGE/SHARD.json     its marker
    stages/STAGE.json           the marker of a stage over all shards

A marker has a fingerprint of what the stage was given: settings and files. When these are others, what is in
the folder is removed and made anew; and so on with the stages that take it, where it has changed. So when a
shard changes or a new one comes, what depends on it is done, and nothing else. A marker without `output` is
of work that was begun: it goes on from the files that are there. Whoever does a task holds a lock on its
marker meanwhile.

The commands `dedup` and `decontaminate` go over shards by themselves (`shards.py`): here a task has a folder
of its own, its marker also says what it cost, which no two runs have alike, and a refused shard holds up no
other one.
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from rationalyst_jax.files.lock import locked
from rationalyst_jax.files.settings import digest, file_digest
from rationalyst_jax.files.whole import read_json, write_json
from rationalyst_jax.pipeline.workers import Report

SHARDS = "shards"  # the kind of file that the first stage takes: the shards as they are given

Progress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class Tally:
    """What a stage did with a shard.

    taken: how many documents or rationales it read; made: how many it made of them, or left. counts: how many
    met which outcome. flops: the operations of models that this took (0: nobody counted).
    """

    taken: int
    made: int
    counts: Mapping[str, int] = field(default_factory=dict)
    flops: int = 0


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: Of the stage, and of its folder.
        work: Is called with what a worker keeps open, the task, and what is to be told how many documents are
            done, of how many, and how many tokens a model has computed: before it computes any, and after
            all. It writes each of the task's outputs whole, and may continue other files in the task's
            folder.
        takes: The kinds of files that it reads: what the last stage before it has made of that kind.
        makes: The files that it makes, by their kinds.
        over_all: Whether it is done once, with the files of all shards, after all stages before it. No stage
            after it begins before it is done.
    """

    name: str
    work: Callable[[Any, "ShardTask", Progress], Tally]
    takes: tuple[str, ...]
    makes: Mapping[str, str]
    over_all: bool = False


@dataclass(frozen=True)
class ShardTask:
    """One stage of one shard (None: of all): the files that it takes, by their kinds, and its folder."""

    stage: Stage
    shard: str | None
    inputs: Mapping[str, Sequence[Path]]
    out: Path

    @property
    def name(self) -> str:
        return task_name(self.stage.name, self.shard)

    def input(self, kind: str) -> Path:
        """The only file of a kind."""
        [path] = self.inputs[kind]
        return path

    def output(self, kind: str) -> Path:
        return self.out / self.stage.makes[kind]


def task_name(stage: str, shard: str | None) -> str:
    return f"stage {stage} of {'all shards' if shard is None else shard}"


@dataclass(frozen=True)
class StageGroup:
    """Stages of which each shard can be done without waiting for others, and what is left to do of them.

    left: of each shard (None: all shards) that is not done, the first stage that is not.
    """

    stages: Sequence[str]
    left: Mapping[str | None, str]

    def share(self, rank: int, ranks: int) -> "StageGroup":
        """What one of several ranks does of it: of the shards that are left each `ranks`-th, from `rank`."""
        return StageGroup(self.stages, dict(list(self.left.items())[rank::ranks]))


@dataclass(frozen=True)
class StageStatus:
    """How far a stage has come: of `tasks` some are done and some begun.

    The tally is of those done. tokens (that models computed) and seconds (of workers) are of all that were
    begun, what dead workers lost included. at_work: of shards that were begun, how many documents or
    rationales are done, and of how many, where the stage has told. refused: of shards that were begun and
    given up, why.
    """

    name: str
    tasks: int
    done: int
    begun: int
    tally: Tally
    tokens: int
    seconds: float
    at_work: Mapping[str, Sequence[int]]
    refused: Mapping[str, str]


@dataclass(frozen=True)
class Performed:
    """A task that is done: the fingerprints of what it made, by kinds, and how many tokens it took."""

    tally: Tally
    output: Mapping[str, str]
    tokens: int


def perform(tools: Any, task: ShardTask, report: Report) -> Performed:
    """Does a task, in a worker."""
    first: int | None = None  # tokens that the model had computed before
    computed = 0

    def progress(done: int, total: int, tokens: int) -> None:
        nonlocal first, computed
        if first is None:
            first = tokens
        computed = tokens - first
        report((done, total, computed))

    if task.stage.makes:
        task.out.mkdir(parents=True, exist_ok=True)
    tally = task.stage.work(tools, task, progress)
    output = {kind: file_digest(task.output(kind)) for kind in task.stage.makes}
    return Performed(tally, output, computed)


class ShardedRun:
    """The tasks of a run, as `workers.supervise` takes them: all shards of a stage, then of the next one.

    shards: files by the names of shards. settings: JSON values, all that decides what stages make. losses:
    how often the worker of one task may die. group: the only tasks to be done here, by default all. What its
    stages take of stages before them must be there: their markers are believed.

    A context: whoever does tasks enters it, and its end lets go of those that were not done.
    """

    def __init__(
        self,
        path: Path,
        shards: Mapping[str, Path],
        stages: Sequence[Stage],
        settings: Mapping[str, Any],
        *,
        losses: int,
        progress: Progress = lambda done, total, tokens: None,
        group: StageGroup | None = None,
    ):
        self.path = path
        self.failed: dict[str, str] = {}  # what was refused: names of tasks and messages
        self._shards = shards
        self._stages = stages
        self._settings = digest([json.dumps(settings, sort_keys=True).encode()])
        self._losses_allowed = losses
        self._progress = progress
        self._makers = _makers(stages)
        self._waiting: dict[str, dict[str | None, None]] = {
            stage.name: dict.fromkeys(group.left if group else [None] if stage.over_all else shards)
            for stage in stages
            if group is None or stage.name in group.stages
        }
        self._total = sum(map(len, self._waiting.values()))
        # Of each stage and shard that is done, fingerprints of what was made, by kinds.
        self._made: dict[tuple[str, str | None], Mapping[str, str]] = {}
        self._at_work: dict[str, _AtWork] = {}
        self._losses = Counter[str]()
        self._tokens = 0  # that this run has computed
        if group is None:
            over_all = {stage.name: stage.over_all for stage in stages}
            write_json(path / _PLAN, {"shards": list(shards), "stages": over_all})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        for work in self._at_work.values():
            work.lock.close()

    @property
    def is_done(self) -> bool:
        return not self.failed and not any(self._waiting.values())

    def groups(self) -> list[StageGroup]:
        """What is left to do, in groups of which each needs all before it. The markers of what others have
        done meanwhile are read."""
        for stage in self._stages:
            for shard in list(self._waiting[stage.name]):
                found = self._ready(stage, shard)
                if found is not None and self._is_done(*found):
                    del self._waiting[stage.name][shard]
        groups: list[StageGroup] = []
        for _, stages in groupby(self._stages, key=lambda stage: stage.over_all):
            names = [stage.name for stage in stages]
            left: dict[str | None, str] = {}
            for name in names:
                left = dict.fromkeys(self._waiting[name], name) | left
            if left:
                groups.append(StageGroup(names, left))
        return groups

    # ---- What workers ask and tell ----

    def take(self) -> ShardTask | None:
        for stage in self._stages:
            if stage.name not in self._waiting:
                continue
            while (found := self._next_ready(stage)) is not None:
                task, made_of = found
                del self._waiting[stage.name][task.shard]
                if self._begins(task, made_of):
                    return task
            if stage.over_all and (stage.name, None) not in self._made:
                return None
        return None

    def reports(self, task: ShardTask, value: tuple[int, int, int]) -> None:
        done, total, tokens = value
        self._computed(task, tokens)
        self._write(task, progress=[done, total])

    def done(self, task: ShardTask, result: Performed) -> None:
        self._made[task.stage.name, task.shard] = result.output
        self._computed(task, result.tokens)
        self._write(task, output=result.output, **asdict(result.tally))
        self._at_work.pop(task.name).lock.close()

    def refused(self, task: ShardTask, message: str) -> None:
        self._put_down(task, refused=message)
        self.failed[task.name] = message

    def lost(self, task: ShardTask, how: str) -> None:
        """Raises ValueError where that has come too often."""
        self._losses[task.name] += 1
        if (losses := self._losses[task.name]) > self._losses_allowed:
            why = f"its worker died {losses} times, at last {how}"
            self._put_down(task, refused=why)
            raise ValueError(f"{task.name}: {why}; the same command tries it again")
        self._put_down(task)
        self._waiting[task.stage.name][task.shard] = None

    # ---- Which tasks there are ----

    def _next_ready(self, stage: Stage) -> tuple[ShardTask, str] | None:
        """The first waiting task of a stage for which all is there, and its fingerprint."""
        return next(filter(None, (self._ready(stage, shard) for shard in self._waiting[stage.name])), None)

    def _ready(self, stage: Stage, shard: str | None) -> tuple[ShardTask, str] | None:
        """A task for which all is there, and its fingerprint."""
        files = {kind: list(self._files(stage, shard, kind)) for kind in stage.takes}
        found = [f"{kind} {mark}" for kind, of_kind in files.items() for _, mark in of_kind if mark]
        if len(found) < sum(map(len, files.values())):
            return None
        inputs = {kind: [path for path, _ in of_kind] for kind, of_kind in files.items()}
        folder = self.path / stage.name
        task = ShardTask(stage, shard, inputs, folder if shard is None else folder / shard)
        return task, digest(text.encode() for text in (self._settings, *found))

    def _files(self, stage: Stage, shard: str | None, kind: str) -> Iterator[tuple[Path, str]]:
        """The files of a kind that a stage takes, with their fingerprints: empty where still to be made.

        That of a shard as it is given is its size and the time when it was last changed: to read all of it
        again before anything begins would take hours. Where only that time has changed, the first stage is
        done again, and makes the same.
        """
        maker = self._makers[stage.name, kind]
        shards = list(self._shards) if shard is None else [shard]
        if maker is None:
            for name in shards:
                stat = self._shards[name].stat()
                yield self._shards[name], f"{name} {stat.st_size} {stat.st_mtime_ns}"
            return
        for name in [None] if maker.over_all else shards:
            folder = self.path / maker.name / (name or "")
            made = self._what_is_made(maker, name)
            yield folder / maker.makes[kind], "" if made is None else f"{name} {made[kind]}"

    def _what_is_made(self, stage: Stage, shard: str | None) -> Mapping[str, str] | None:
        """Fingerprints of what a stage has made of a shard, by kinds; None: it is not done."""
        key = stage.name, shard
        if key not in self._made and stage.name not in self._waiting:  # a stage before this group
            marker = self._read(*key)
            if "output" in marker:
                self._made[key] = marker["output"]
        return self._made.get(key)

    # ---- Markers ----

    def _begins(self, task: ShardTask, made_of: str) -> bool:
        """Whether a task is to be done here; its marker then says that it was begun."""
        if self._is_done(task, made_of):
            return False
        with ExitStack() as lock:
            try:
                lock.enter_context(locked(self._marker(task)))
            except ValueError as error:  # another process is at it
                self.failed[task.name] = str(error)
                return False
            if self._is_done(task, made_of):  # another process was at it
                return False
            marker = self._read(task.stage.name, task.shard)
            same = marker.get("made_of") == made_of
            if not same:
                shutil.rmtree(task.out, ignore_errors=True)
            before = (marker["tokens"], marker["seconds"]) if same else (0, 0.0)
            self._at_work[task.name] = _AtWork(made_of, *before, lock.pop_all())
        self._write(task)
        return True

    def _is_done(self, task: ShardTask, made_of: str) -> bool:
        """Whether a task's marker and files are there. Then it counts as done."""
        marker = self._read(task.stage.name, task.shard)
        if marker.get("made_of") != made_of or "output" not in marker:
            return False
        if not all(task.output(kind).exists() for kind in task.stage.makes):
            return False
        self._made[task.stage.name, task.shard] = marker["output"]
        self._tell()
        return True

    def _put_down(self, task: ShardTask, **what: Any) -> None:
        """Of a task that is not done the marker keeps what it took."""
        self._write(task, **what)
        self._at_work.pop(task.name).lock.close()

    def _computed(self, task: ShardTask, tokens: int) -> None:
        work = self._at_work[task.name]
        self._tokens += tokens - work.tokens
        work.tokens = tokens
        self._tell()

    def _write(self, task: ShardTask, **what: Any) -> None:
        write_json(self._marker(task), self._at_work[task.name].as_json() | what)

    def _marker(self, task: ShardTask) -> Path:
        return _marker_path(self.path, task.stage.name, task.shard)

    def _read(self, stage: str, shard: str | None) -> dict[str, Any]:
        """A marker; empty: the task was not begun."""
        path = _marker_path(self.path, stage, shard)
        return read_json(path) if path.exists() else {}

    def _tell(self) -> None:
        self._progress(len(self._made), self._total, self._tokens)


@dataclass
class _AtWork:
    """A task that a worker is at: its fingerprint, the tokens and seconds that other workers spent on it, the
    lock on its marker, and the tokens of this worker."""

    made_of: str
    tokens_before: int
    seconds_before: float
    lock: ExitStack
    tokens: int = 0
    since: float = field(default_factory=time.monotonic)

    def as_json(self) -> dict[str, Any]:
        seconds = self.seconds_before + time.monotonic() - self.since
        tokens = self.tokens_before + self.tokens
        return {"made_of": self.made_of, "tokens": tokens, "seconds": round(seconds, 2)}


_PLAN = "shards.json"


def status(run_dir: Path) -> list[StageStatus]:
    """How far each stage has come, as the markers in the folder of a run say.

    Raises FileNotFoundError for a folder without a run.
    """
    plan = read_json(run_dir / _PLAN)
    return [
        _status(run_dir, name, [None] if over_all else plan["shards"])
        for name, over_all in plan["stages"].items()
    ]


def _status(run_dir: Path, stage: str, shards: Sequence[str | None]) -> StageStatus:
    paths = {shard: _marker_path(run_dir, stage, shard) for shard in shards}
    found = {shard or "all": read_json(path) for shard, path in paths.items() if path.exists()}
    markers = list(found.values())
    done = [marker for marker in markers if "output" in marker]
    counts = Counter[str]()
    for marker in done:
        counts.update(marker["counts"])
    sums = {key: sum(marker[key] for marker in done) for key in ("taken", "made", "flops")}
    tally = Tally(**sums, counts=dict(counts.most_common()))
    tokens, seconds = (sum(marker[key] for marker in markers) for key in ("tokens", "seconds"))
    at_work = {shard: marker["progress"] for shard, marker in found.items() if "progress" in marker}
    begun = len(markers) - len(done)
    refused = {shard: marker["refused"] for shard, marker in found.items() if "refused" in marker}
    return StageStatus(stage, len(shards), len(done), begun, tally, tokens, seconds, at_work, refused)


def _marker_path(run_dir: Path, stage: str, shard: str | None) -> Path:
    folder = run_dir / "stages"
    return folder / f"{stage}.json" if shard is None else folder / stage / f"{shard}.json"


def _makers(stages: Sequence[Stage]) -> dict[tuple[str, str], Stage | None]:
    """For each stage and each kind that it takes, the last stage before it that makes it; None: it is
    given."""
    makers: dict[tuple[str, str], Stage | None] = {}
    last: dict[str, Stage | None] = {SHARDS: None}
    for stage in stages:
        makers |= {(stage.name, kind): last[kind] for kind in stage.takes}
        last |= dict.fromkeys(stage.makes, stage)
    return makers
