"""Worker processes for long work: one that dies is replaced, and what it was at is done again.

Each worker opens what it needs once (models, say) and then does task after task. It has its own device, and
ends when this process ends, however that happens. `tasks/killable.py` is for short work, of which a death
costs one item, and `mine/workers.py` for a stream of short items, of which the caller takes the results in
order.
"""

import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Literal, Protocol

from rationalyst_jax.files.whole import in_words

Report = Callable[[Any], None]  # is told now and then how far a task has come
Event = Literal["reports", "done", "refused", "lost"]  # the methods of a Schedule that are told

_SECONDS_BETWEEN_REPORTS = 1


class Schedule(Protocol):
    """Which tasks there are, in which order, and what is to be done when they end."""

    def take(self) -> Any | None:
        """A task for a worker that has none; None: not now, or never. It goes to a worker as a pickle."""
        ...

    def reports(self, task: Any, value: Any) -> None:
        """A task has come so far."""
        ...

    def done(self, task: Any, result: Any) -> None:
        """A task is done."""
        ...

    def refused(self, task: Any, message: str) -> None:
        """A task ended with ValueError or OSError."""
        ...

    def lost(self, task: Any, how: str) -> None:
        """The worker died, `how` says of what. Whether another one is to do the task, `take` decides. What
        this raises ends all workers."""
        ...


def supervise(
    schedule: Schedule,
    opened: Callable[[], AbstractContextManager[Any]],
    perform: Callable[[Any, Any, Report], Any],
    environments: Sequence[Mapping[str, str]],
) -> None:
    """Does all tasks of a schedule in workers, one for each environment. Returns when no worker has a task
    and there is none to take.

    A worker sets the variables of its environment, enters the context `opened` once, and calls
    `perform(what the context gave, task, report)` for each task; all of this goes to it as a pickle. A task
    that raises ValueError or OSError is refused. With any other exception its worker dies, as if it was
    killed. Workers ignore Ctrl-C: it interrupts this process, and whatever ends this call ends them.
    """
    context = multiprocessing.get_context("spawn")
    workers = [_Worker(context, environment, opened, perform) for environment in environments]
    try:
        while True:
            for worker in workers:
                if worker.task is None:
                    if (task := schedule.take()) is None:
                        break  # nor is there one for the others
                    worker.give(task)
            busy = {worker.pipe: worker for worker in workers if worker.task is not None}
            if not busy:
                return
            while all(worker.task is not None for worker in busy.values()):  # else there may be new tasks
                for pipe in wait(list(busy)):
                    _hear(busy[pipe], schedule)  # pyright: ignore[reportArgumentType]
    finally:
        for worker in workers:
            worker.end()


def _hear(worker: "_Worker", schedule: Schedule) -> None:
    """One message of a worker, or its death."""
    task = worker.task
    event: Event
    try:
        event, value = worker.pipe.recv()
    except (EOFError, OSError):
        event, value = "lost", worker.died()
    else:
        if event == "lost":
            worker.died()
    if event != "reports":
        worker.task = None
    getattr(schedule, event)(task, value)


class _Worker:
    """A place for a process, and the task that it is at."""

    def __init__(self, context: SpawnContext, environment: Mapping[str, str], *how: Any):
        self._context = context
        self._how = (environment, *how)
        self._process: SpawnProcess | None = None
        self.pipe: Connection
        self.task: Any | None = None

    def give(self, task: Any) -> None:
        """Sends a task, to a new process where there is none, or one that died while it had nothing to do."""
        self.task = task
        if self._process is not None and not self._process.is_alive():
            self.end()
        if self._process is None:
            self.pipe, theirs = self._context.Pipe()
            self._process = self._context.Process(target=_serve, args=(theirs, *self._how))
            self._process.start()
            theirs.close()
        try:
            self.pipe.send(task)
        except OSError:  # it died this moment, which is heard next
            pass

    def died(self) -> str:
        """To be called when its pipe is closed: says of what it died, and clears up."""
        assert self._process is not None
        self._process.join(timeout=10)  # the pipe closes a moment before there is an exit code
        code = self._process.exitcode
        self.end()
        if code is None:
            return "without an exit code"
        return f"of {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"

    def end(self) -> None:
        """Ends the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self.pipe.close()
            self._process = None


def _serve(
    pipe: Connection,
    environment: Mapping[str, str],
    opened: Callable[[], AbstractContextManager[Any]],
    perform: Callable[[Any, Any, Report], Any],
) -> None:
    """What a worker does, until its pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ |= environment
    told = 0.0

    def report(value: Any) -> None:
        nonlocal told
        if time.monotonic() - told >= _SECONDS_BETWEEN_REPORTS:
            pipe.send(("reports", value))
            told = time.monotonic()

    with opened() as tools:
        while True:
            try:
                task = pipe.recv()
            except EOFError:
                return
            told = 0.0  # what a task says first is told, however soon after the last one
            message: tuple[Event, Any]
            try:
                message = "done", perform(tools, task, report)
            except (ValueError, OSError) as error:
                message = "refused", in_words(error)
            except Exception as error:
                pipe.send(("lost", f"of {type(error).__name__}: {error}"))
                raise
            pipe.send(message)


def _end_with_parent() -> None:
    """Ends this process as soon as the one that started it has ended: another run may go on from there."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def environments(workers: int | None, *, gpus: bool = True) -> list[dict[str, str]]:
    """The variables of each worker's environment: of several NVIDIA GPUs it sees one.

    workers: by default one for each GPU, and one on a machine without. gpus: whether they want any. Raises
    ValueError where there are fewer GPUs than workers.
    """
    without = not gpus or os.environ.get("JAX_PLATFORMS", "").startswith("cpu")
    found = [] if without else _gpus()
    count = workers or len(found) or 1
    if found and count > len(found):
        raise ValueError(
            f"{count} workers want a GPU each, there are {len(found)} (JAX_PLATFORMS=cpu computes without)"
        )
    return [{"CUDA_VISIBLE_DEVICES": found[number]} if found else {} for number in range(count)]


def _gpus() -> list[str]:
    """What CUDA calls the GPUs that this process may use. CUDA itself is not asked: it would take them."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    found = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(found))]
