"""What stages over shards are, and what a run has done of them, as the markers in its folder say.

A stage is a function from files of a shard to files of that shard. In the folder of a run there are:

    STAGE/SHARD/                what the stage made of the shard
    STAGE/                      what a stage over all shards made
    stages/STAGE/SHARD.json     its marker
    stages/STAGE.json           the marker of a stage over all shards
    shards.json                 which shards and stages there are

A marker has a fingerprint of what the stage was given: settings and files. When these are others, what is in
the folder is removed and made anew; and so on with the stages that take it, where it has changed. So when a
shard changes or a new one comes, what depends on it is done, and nothing else. A marker without `output` is
of work that was begun: it goes on from the files that are there. Whoever does a task holds a lock on its
marker meanwhile.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rationalyst_jax.files.settings import digest
from rationalyst_jax.files.whole import read_json, write_json

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
        has_model: Whether workers compute a model of their own for it, for which they want a device.
    """

    name: str
    work: Callable[[Any, "ShardTask", Progress], Tally]
    takes: tuple[str, ...]
    makes: Mapping[str, str]
    over_all: bool = False
    has_model: bool = False


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


class Markers:
    """The markers of a run in the folder `path`.

    shards: files by the names of shards. settings: a fingerprint of all else that decides what stages make.
    believed: stages whose markers are taken at their word. marks: those of shards (`mark_of`), for files that
    are not there.

    Attributes:
        made: Of each stage and shard that is known to be done, fingerprints of what was made, by kinds.
    """

    def __init__(
        self,
        path: Path,
        shards: Mapping[str, Path],
        stages: Sequence[Stage],
        settings: str,
        *,
        believed: Collection[str] = (),
        marks: Mapping[str, str] | None = None,
    ):
        self.made: dict[tuple[str, str | None], Mapping[str, str]] = {}
        self._path = path
        self._shards = shards
        self._settings = settings
        self._believed = believed
        self._marks = marks or {}
        self._makers = _makers(stages)

    def ready(self, stage: Stage, shard: str | None) -> tuple[ShardTask, str] | None:
        """A task and its fingerprint; None: what it takes is still to be made."""
        files = {kind: list(self._files(stage, shard, kind)) for kind in stage.takes}
        found = [f"{kind} {mark}" for kind, of_kind in files.items() for _, mark in of_kind if mark]
        if len(found) < sum(map(len, files.values())):
            return None
        inputs = {kind: [path for path, _ in of_kind] for kind, of_kind in files.items()}
        folder = self._path / stage.name
        task = ShardTask(stage, shard, inputs, folder if shard is None else folder / shard)
        return task, digest(text.encode() for text in (self._settings, *found))

    def is_done(self, task: ShardTask, made_of: str) -> bool:
        """Whether a task's marker and files are there. Then it is in `made`."""
        marker = self.read(task.stage.name, task.shard)
        if marker.get("made_of") != made_of or "output" not in marker:
            return False
        if not all(task.output(kind).exists() for kind in task.stage.makes):
            return False
        self.made[task.stage.name, task.shard] = marker["output"]
        return True

    def path(self, stage: str, shard: str | None) -> Path:
        folder = self._path / "stages"
        return folder / f"{stage}.json" if shard is None else folder / stage / f"{shard}.json"

    def read(self, stage: str, shard: str | None) -> dict[str, Any]:
        """A marker; empty: the task was not begun."""
        path = self.path(stage, shard)
        return read_json(path) if path.exists() else {}

    def _files(self, stage: Stage, shard: str | None, kind: str) -> Iterator[tuple[Path, str]]:
        """The files of a kind that a stage takes, with their fingerprints: empty where still to be made."""
        maker = self._makers[stage.name, kind]
        shards = list(self._shards) if shard is None else [shard]
        if maker is None:
            for name in shards:
                yield self._shards[name], f"{name} {mark_of(self._shards[name], self._marks.get(name))}"
            return
        for name in [None] if maker.over_all else shards:
            folder = self._path / maker.name / (name or "")
            made = self._what_is_made(maker, name)
            yield folder / maker.makes[kind], "" if made is None else f"{name} {made[kind]}"

    def _what_is_made(self, stage: Stage, shard: str | None) -> Mapping[str, str] | None:
        """Fingerprints of what a stage has made of a shard, by kinds; None: it is not done."""
        key = stage.name, shard
        if key not in self.made and stage.name in self._believed:
            marker = self.read(*key)
            if "output" in marker:
                self.made[key] = marker["output"]
        return self.made.get(key)


def mark_of(shard: Path, absent: str | None = None) -> str:
    """The fingerprint of a shard as it is given: its size and the time when it was last changed. To read all
    of it again before anything begins would take hours. Where only that time has changed, the first stage is
    done again, and makes the same.

    absent: that of a file that is not there; by default FileNotFoundError is raised.
    """
    try:
        stat = shard.stat()
    except FileNotFoundError:
        if absent is None:
            raise
        return absent
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _makers(stages: Sequence[Stage]) -> dict[tuple[str, str], Stage | None]:
    """For each stage and each kind that it takes, the last stage before it that makes it; None: it is
    given."""
    makers: dict[tuple[str, str], Stage | None] = {}
    last: dict[str, Stage | None] = {SHARDS: None}
    for stage in stages:
        makers |= {(stage.name, kind): last[kind] for kind in stage.takes}
        last |= dict.fromkeys(stage.makes, stage)
    return makers


# ---- How far a run is ----

_PLAN = "shards.json"


def write_plan(run_dir: Path, shards: Mapping[str, Path], stages: Sequence[Stage], settings: str) -> None:
    """Records what `status` compares markers with."""
    plan = {
        "settings": settings,
        "shards": {
            name: {"path": str(path.absolute()), "mark": mark_of(path)} for name, path in shards.items()
        },
        "stages": [
            {"name": one.name, "takes": one.takes, "makes": dict(one.makes), "over_all": one.over_all}
            for one in stages
        ],
    }
    write_json(run_dir / _PLAN, plan)


@dataclass(frozen=True)
class StageStatus:
    """How far a stage has come: of `tasks` some are done and some begun, and some are to be done `again`.

    These were done, but a run would not count them so: what they were made of has changed, or is itself to be
    made again. The tally is of those done, but its operations, tokens (that models computed) and seconds (of
    workers) are of all that were begun, what dead workers lost included. at_work: of shards that were begun,
    how many documents or rationales are done, and of how many, where the stage has told. refused: of shards
    that were begun and given up, why.
    """

    name: str
    tasks: int
    done: int
    begun: int
    again: int
    tally: Tally
    tokens: int
    seconds: float
    at_work: Mapping[str, Sequence[int]]
    refused: Mapping[str, str]


def status(run_dir: Path) -> list[StageStatus]:
    """How far each stage has come, as a run that begins now would find it, of the shards that the last one
    had.

    Shards that are not there any more count as the last run saw them. Raises FileNotFoundError for a folder
    without a run, and ValueError for that of a run of an earlier version.
    """
    plan = read_json(run_dir / _PLAN)
    if "settings" not in plan:
        raise ValueError(f"{run_dir / _PLAN}: begun by an earlier version, whose runs do not go on")
    try:
        shards = {name: Path(shard["path"]) for name, shard in plan["shards"].items()}
        marks = {name: shard["mark"] for name, shard in plan["shards"].items()}
        stages = [Stage(work=_not_here, **stage) for stage in plan["stages"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{run_dir / _PLAN}: not the plan of a run ({error!r})") from None
    markers = Markers(run_dir, shards, stages, plan["settings"], marks=marks)
    return [_status(markers, stage, [None] if stage.over_all else list(shards)) for stage in stages]


def _not_here(tools: Any, task: ShardTask, progress: Progress) -> Tally:
    raise AssertionError("a status is asked for, and nothing done")


def _status(markers: Markers, stage: Stage, shards: Sequence[str | None]) -> StageStatus:
    found = {shard: marker for shard in shards if (marker := markers.read(stage.name, shard))}
    worked = {shard: marker for shard, marker in found.items() if "output" in marker}
    done = [
        marker
        for shard, marker in worked.items()
        if (ready := markers.ready(stage, shard)) is not None and markers.is_done(*ready)
    ]
    counts = Counter[str]()
    for marker in done:
        counts.update(marker["counts"])
    named = {shard or "all": marker for shard, marker in found.items()}
    return StageStatus(
        name=stage.name,
        tasks=len(shards),
        done=len(done),
        begun=len(found) - len(worked),
        again=len(worked) - len(done),
        tally=Tally(
            taken=sum(marker["taken"] for marker in done),
            made=sum(marker["made"] for marker in done),
            counts=dict(counts.most_common()),
            flops=sum(marker["flops"] for marker in worked.values()),
        ),
        tokens=sum(marker["tokens"] for marker in found.values()),
        seconds=sum(marker["seconds"] for marker in found.values()),
        at_work={name: marker["progress"] for name, marker in named.items() if "progress" in marker},
        refused={name: marker["refused"] for name, marker in named.items() if "refused" in marker},
    )
