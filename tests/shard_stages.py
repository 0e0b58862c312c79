"""Stages without a model, for the tests of runs over shards. Workers import them: nothing here needs jax.

Documents are read as mining reads them, and "annotated" row by row: a file that is there already goes on.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rationalyst_jax.files.interruption import Interrupted, interrupted_by_sigterm
from rationalyst_jax.files.rows import append_rows, kept_rows, read_file, write_rows
from rationalyst_jax.mine.documents import read_shard
from rationalyst_jax.pipeline.markers import SHARDS, Progress, ShardTask, Stage, Tally
from rationalyst_jax.pipeline.sharded import ShardedRun, perform
from rationalyst_jax.pipeline.workers import supervise


@contextmanager
def opened(root: Path) -> Iterator[Path]:
    """What a worker keeps open: the folder of the test, in which it is noted."""
    append_rows(root / "opened.jsonl", [{"process": os.getpid()}])
    yield root


def read(root: Path, task: ShardTask, progress: Progress) -> Tally:
    bad: list[str] = []
    shard = task.input(SHARDS)
    found = list(read_shard(shard, shard, lambda error: bad.append(str(error))))
    write_rows(task.output("documents"), map(vars, found))
    write_rows(task.out / "bad.jsonl", ({"error": error} for error in bad))
    return Tally(len(found) + len(bad), len(found), {"bad": len(bad)})


def annotate(root: Path, task: ShardTask, progress: Progress) -> Tally:
    """Dies, or waits, amid a shard while the test has left a file that says so."""
    part = task.out / "part.jsonl"
    rows = kept_rows(part, lambda place, row: row["id"])
    taken = [row for _, row in read_file(task.input("documents"))]
    progress(0, len(taken), 1000)
    for row in taken:
        if row["id"] not in rows:
            append_rows(part, [{"id": row["id"], "text": row["text"].upper()}])
            progress(len(rows), len(taken), 1010)
            _disturb(root, task)
    write_rows(task.output("annotated"), (row for _, row in read_file(part)))
    return Tally(len(taken), len(taken), flops=100 * len(taken))


def _disturb(root: Path, task: ShardTask) -> None:
    if (waiting := root / f"wait-{task.shard}").exists():
        (root / f"waits-{task.shard}").write_text(str(os.getpid()))
        while waiting.exists():
            time.sleep(0.01)
    for dying in sorted(root.glob(f"die-{task.shard}-*"))[:1]:
        dying.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    if (root / f"raise-{task.shard}").exists():
        raise TypeError("a bug")
    if (root / f"refuse-{task.shard}").exists():
        raise ValueError(f"{task.shard}: is not to be had")


def count(root: Path, task: ShardTask, progress: Progress) -> Tally:
    lines = sum(len(path.read_bytes().splitlines()) for path in task.inputs["annotated"])
    write_rows(task.output("total"), [{"lines": lines}])
    return Tally(lines, lines)


def number(root: Path, task: ShardTask, progress: Progress) -> Tally:
    """Takes what was made of all shards, and of its own by the last stage that made such files."""
    total = task.input("total").read_text()
    write_rows(task.output("annotated"), [{"of": total, "shard": task.input("annotated").read_text()}])
    return Tally(1, 1)


def merge(root: Path, task: ShardTask, progress: Progress) -> Tally:
    task.output("all").write_bytes(b"".join(path.read_bytes() for path in task.inputs["annotated"]))
    return Tally(len(task.inputs["annotated"]), 1)


STAGES = (
    Stage("read", read, (SHARDS,), {"documents": "documents.jsonl"}),
    Stage("annotate", annotate, ("documents",), {"annotated": "annotated.jsonl"}),
    Stage("count", count, ("annotated",), {"total": "total.jsonl"}, over_all=True),
    Stage("number", number, ("annotated", "total"), {"annotated": "numbered.jsonl"}),
    Stage("merge", merge, ("annotated",), {"all": "all.jsonl"}, over_all=True),
)


def run(root: Path, run_dir: Path, workers: int, losses: int = 3) -> ShardedRun:
    """Runs the stages over `root/shards`."""
    with ShardedRun(run_dir, shards_of(root), STAGES, {"a": "setting"}, losses=losses) as work:
        supervise(work, partial(opened, root), perform, [{"WORKER": str(i)} for i in range(workers)])
    return work


def supervise_in_process(
    schedule: Any, opened: Callable[[], AbstractContextManager[Any]], perform: Callable, environments: Any
) -> None:
    """In place of `supervise`, with no workers."""
    with opened() as tools:
        while (task := schedule.take()) is not None:
            try:
                schedule.done(task, perform(tools, task, lambda value: None))
            except ValueError as error:
                schedule.refused(task, str(error))


def shards_of(root: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted((root / "shards").glob("*.jsonl"))}


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with interrupted_by_sigterm():
            run(Path(sys.argv[1]), Path(sys.argv[2]), workers=2)
    except Interrupted as stop:
        sys.exit(str(stop))
