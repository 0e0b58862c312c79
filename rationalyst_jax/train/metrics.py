"""The numbers of every step: metrics.jsonl, the files of TensorBoard, Weights & Biases where asked."""

import json
import os
import struct
import time
import uuid
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from tensorboardX.record_writer import masked_crc32c

from rationalyst_jax.files.whole import whole
from rationalyst_jax.lm.devices.distributed import is_main

Metrics = dict[str, float]
# Modules whose classes are made when they are imported.
_EVENTS: Any = import_module("tensorboardX.proto.event_pb2")
_SUMMARIES: Any = import_module("tensorboardX.proto.summary_pb2")


class MetricsLog:
    """Writes rows of numbers, row N for step N; opened after `done` steps, it forgets what came later.

    `project` names one of Weights & Biases', whose package then has to be there. Where processes are many,
    process 0 writes. A context. Raises ValueError where the file holds fewer rows than `done`, and OSError
    naming a file that cannot be written.
    """

    def __init__(self, run_dir: Path, done: int, project: str | None = None):
        self.path = run_dir / "metrics.jsonl"
        self._last: Metrics = {}
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
        self._events = run_dir / "tensorboard" / f"events.out.tfevents.{time.time_ns()}"
        self._events.parent.mkdir(exist_ok=True)
        self._event(file_version="brain.Event:2")
        # A board that reads the files of several starts drops the steps that an earlier one did beyond this.
        self._event(step=done + 1, session_log=_EVENTS.SessionLog(status=_EVENTS.SessionLog.START))
        if project:
            self._wandb = _wandb_run(project, run_dir)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._wandb:
            self._wandb.finish()

    def write(self, row: Metrics) -> None:
        self._last = row
        if not is_main():
            return
        _append(self.path, json.dumps(row).encode() + b"\n")
        step, numbers = int(row["step"]), {name: value for name, value in row.items() if name != "step"}
        values = [_SUMMARIES.Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._event(step=step, summary=_SUMMARIES.Summary(value=values))
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

    def _event(self, **fields: Any) -> None:
        """A record of TensorBoard's: its length and its bytes, each with a checksum."""
        data = _EVENTS.Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(data))
        checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
        _append(self._events, length + next(checksums) + data + next(checksums))


def _append(path: Path, data: bytes) -> None:
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # a failed write does not name it


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
    name, run_id = run_dir.resolve().name, kept.read_text()
    try:
        return wandb.init(project=project, name=name, id=run_id, dir=run_dir, resume="allow")
    except wandb.Error as error:
        raise ValueError(f"wandb: {' '.join(str(error).split())}") from error
