"""Stages over shards, in worker processes that may die: each stage of each shard is done once.

`markers.py` says what stages are, and what of them is done.

The commands `dedup` and `decontaminate` go over shards by themselves (`shards.py`): here a task has a folder
of its own, its marker also says what it cost, which no two runs have alike, and a refused shard holds up no
other one.
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from rationalyst_jax.files.lock import locked
from rationalyst_jax.files.settings import digest, file_digest
from rationalyst_jax.files.whole import write_json
from rationalyst_jax.pipeline.markers import Markers, Progress, ShardTask, Stage, Tally, write_plan
from rationalyst_jax.pipeline.workers import Report


@dataclass(frozen=True)
class StageGroup:
    """Stages of which each shard can be done without waiting for others, and what is left to do of them.

    left: of each shard (None: all shards) that is not done, the first stage that is not. has_model: whether
    all stages have one, or none.
    """

    stages: Sequence[str]
    left: Mapping[str | None, str]
    has_model: bool = False

    def share(self, rank: int, ranks: int) -> "StageGroup":
        """What one of several ranks does of it: of the shards that are left each `ranks`-th, from `rank`."""
        return replace(self, left=dict(list(self.left.items())[rank::ranks]))


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
        self._stages = stages
        self._losses_allowed = losses
        self._progress = progress
        self._waiting: dict[str, dict[str | None, None]] = {
            stage.name: dict.fromkeys(group.left if group else [None] if stage.over_all else shards)
            for stage in stages
            if group is None or stage.name in group.stages
        }
        self._total = sum(map(len, self._waiting.values()))
        before = [stage.name for stage in stages if stage.name not in self._waiting]
        decides = digest([json.dumps(settings, sort_keys=True).encode()])
        self._markers = Markers(path, shards, stages, decides, believed=before)
        self._at_work: dict[str, _AtWork] = {}
        self._losses = Counter[str]()
        self._tokens = 0  # that this run has computed
        if group is None:
            write_plan(path, shards, stages, decides)

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
                found = self._markers.ready(stage, shard)
                if found is not None and self._is_done(*found):
                    del self._waiting[stage.name][shard]
        groups: list[StageGroup] = []
        alike = groupby(self._stages, key=lambda stage: (stage.over_all, stage.has_model))
        for (_, has_model), stages in alike:
            names = [stage.name for stage in stages]
            left: dict[str | None, str] = {}
            for name in names:
                left = dict.fromkeys(self._waiting[name], name) | left
            if left:
                groups.append(StageGroup(names, left, has_model))
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
            if stage.over_all and (stage.name, None) not in self._markers.made:
                return None
        return None

    def reports(self, task: ShardTask, value: tuple[int, int, int]) -> None:
        done, total, tokens = value
        self._computed(task, tokens)
        self._write(task, progress=[done, total])

    def done(self, task: ShardTask, result: Performed) -> None:
        self._markers.made[task.stage.name, task.shard] = result.output
        self._computed(task, result.tokens)
        tally = asdict(result.tally)
        tally["flops"] += self._at_work[task.name].flops_before
        self._write(task, output=result.output, **tally)
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

    # ---- Tasks and their markers ----

    def _next_ready(self, stage: Stage) -> tuple[ShardTask, str] | None:
        """The first waiting task of a stage for which all is there, and its fingerprint."""
        waiting = self._waiting[stage.name]
        return next(filter(None, (self._markers.ready(stage, shard) for shard in waiting)), None)

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
            marker = self._markers.read(task.stage.name, task.shard)
            flops = marker.get("flops_before", 0)
            if marker.get("made_of") != made_of:
                shutil.rmtree(task.out, ignore_errors=True)
                flops = marker.get("flops", flops)
            before = (marker.get("tokens", 0), marker.get("seconds", 0.0), flops)
            self._at_work[task.name] = _AtWork(made_of, *before, lock.pop_all())
        self._write(task)
        return True

    def _is_done(self, task: ShardTask, made_of: str) -> bool:
        """Whether a task is done. Then it counts."""
        found = self._markers.is_done(task, made_of)
        if found:
            self._tell()
        return found

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
        return self._markers.path(task.stage.name, task.shard)

    def _tell(self) -> None:
        self._progress(len(self._markers.made), self._total, self._tokens)


@dataclass
class _AtWork:
    """A task that a worker is at: its fingerprint, the tokens and seconds that other workers spent on it, the
    operations of the times that it was done from other files, the lock on its marker, and the tokens of this
    worker."""

    made_of: str
    tokens_before: int
    seconds_before: float
    flops_before: int
    lock: ExitStack
    tokens: int = 0
    since: float = field(default_factory=time.monotonic)

    def as_json(self) -> dict[str, Any]:
        seconds = self.seconds_before + time.monotonic() - self.since
        tokens = self.tokens_before + self.tokens
        return {
            "made_of": self.made_of,
            "tokens": tokens,
            "seconds": round(seconds, 2),
            "flops_before": self.flops_before,
        }
