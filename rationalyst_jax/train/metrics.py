"""The numbers of every step: metrics.jsonl, the files of TensorBoard, Weights & Biases where asked."""

import json
import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from rationalyst_jax.files.whole import whole
from rationalyst_jax.lm.devices.distributed import is_main

Metrics = dict[str, float]


class MetricsLog:
    """Writes rows of numbers, row N for step N; opened after `done` steps, it forgets what came later.

    `project` names one of Weights & Biases', whose package then has to be there. Where processes are many,
    process 0 writes. A context. Raises ValueError where the file holds fewer rows than `done`, and OSError
    naming a file that cannot be written.
    """

    def __init__(self, run_dir: Path, done: int, project: str | None = None):
        self.path = run_dir / "metrics.jsonl"
        self._last: Metrics = {}
        self._board = None
        self._wandb = None
        if not is_main():
            return
        with self.path.open("ab+") as file:
            file.seek(0)
            lines = [line for _ in range(done) if (line := file.readline()).endswith(b"\n")]
            if len(lines) < done:
                raise ValueError(f"{self.path}: holds {len(lines)} of {done} steps")
            file.truncate(sum(map(len, lines)))
        if lines:
            self._last = json.loads(lines[-1])
        if project:
            self._wandb = _wandb_run(project, run_dir)
        self._board = _Board(run_dir / "tensorboard", done)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()

    def write(self, row: Metrics) -> None:
        self._last = row
        if self._board is None:
            return
        with _named(self.path), self.path.open("ab") as file:
            file.write(json.dumps(row).encode() + b"\n")
        step = int(row["step"])
        numbers = {name: value for name, value in row.items() if name != "step"}
        self._board.write(step, numbers)
        if self._wandb:
            self._wandb.log(numbers, step=step)

    def sync(self) -> None:
        """Waits until all rows are on the disk: a checkpoint must not outlive the rows before it."""
        if is_main():
            with self.path.open("ab") as file:
                os.fsync(file.fileno())

    def last(self) -> Metrics:
        """The row of the latest step; empty before the first."""
        return self._last


class _Board:
    """TensorBoard's file of one start, in a folder where it joins those of earlier ones.

    Written by tensorboardX as each row comes: its SummaryWriter has a thread that dies where the disk is full
    and leaves the run waiting for it.
    """

    def __init__(self, folder: Path, done: int):
        library = _tensorboardx()
        self._event = library.writer.Event
        folder.mkdir(exist_ok=True)
        self._path = folder / "events"
        with _named(self._path):
            self._writer = library.event_file_writer.EventsWriter(str(self._path), f".{time.time_ns()}")
            # A board drops the steps that an earlier start did beyond this one's first.
            start = library.writer.SessionLog(status=library.writer.SessionLog.START)
            self._writer.write_event(self._event(step=done + 1, wall_time=time.time(), session_log=start))
        self._scalar = library.summary.scalar

    def write(self, step: int, numbers: Metrics) -> None:
        with _named(self._path):
            for name, value in numbers.items():
                summary = self._scalar(name, value)
                self._writer.write_event(self._event(step=step, wall_time=time.time(), summary=summary))
            self._writer.flush()

    def close(self) -> None:
        with _named(self._path):
            self._writer.close()


def _tensorboardx() -> Any:
    """The library, kept from importing torch for types that nobody passes here."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        return import_module("tensorboardX")
    finally:
        if hidden:
            del sys.modules["torch"]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Adds the file's name to errors of writing, which have none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _wandb_run(project: str, run_dir: Path) -> Any:
    """The run named as its folder, or its continuation.

    Raises ValueError where the package is missing, or says what is wrong (no key, no network).
    """
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise ValueError("wandb is not installed: pip install 'rationalyst_jax[wandb]'") from None
    kept = run_dir / "wandb_id"  # another folder of this name is another run
    if not kept.exists():
        with whole(kept) as unfinished:
            unfinished.write_text(uuid.uuid4().hex)
    try:
        name = run_dir.resolve().name
        return wandb.init(project=project, name=name, id=kept.read_text(), dir=run_dir, resume="allow")
    except wandb.Error as error:
        raise ValueError(f"wandb: {' '.join(str(error).split())}") from error
