"""Worker processes that may be killed: one that takes too long, or too much memory, costs one item."""

import logging
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

READY = "ready"
START = 300  # seconds that a worker may take to begin
# How many times its CPU seconds an item may take on the wall clock: a busy machine isn't the item.
PATIENCE = 20


@dataclass(frozen=True)
class ItemLimits:
    """What one item may take: seconds of CPU time (so a verdict does not depend on what else runs; up to one
    more are granted, as the kernel counts whole seconds), and bytes of address space of its process."""

    seconds: int = 5
    memory: int = 2 << 30


@dataclass
class KillableWorker:
    process: ForkServerProcess
    pipe: Connection
    deadline: float  # on the wall clock
    ready: bool = False
    item: int | None = None  # that it works on


def each(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    limits: ItemLimits,
    preload: str,
    workers: int | None = None,
) -> list[Result | None]:
    """function(item) of each item, in order; None where its process died: of time, memory or a crash.

    The module `preload` is imported once, in a fork server, so that a dead worker is replaced at once. The
    workers (as many as there are processors, unless named) end with the call, an interrupted one as well; the
    fork server, idle, ends with the program. Workers import the program's main module, as multiprocessing has
    it: a script calls this under `if __name__ == "__main__"`. Raises RuntimeError where a worker dies before
    it has had an item.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    results: list[Result | None] = [None] * len(items)
    todo = iter(range(len(items)))
    pool: dict[Connection, KillableWorker] = {}

    def start() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, function, limits, preload), daemon=True)
        process.start()
        theirs.close()
        pool[ours] = KillableWorker(process, ours, deadline=time.monotonic() + START)

    def give(worker: KillableWorker) -> None:
        """The worker's next item; where there is none it ends."""
        worker.item = next(todo, None)
        worker.deadline = time.monotonic() + PATIENCE * limits.seconds
        if worker.item is None:
            _end(pool.pop(worker.pipe))
        else:
            worker.pipe.send(items[worker.item])

    def lose(worker: KillableWorker) -> None:
        """The worker and its item are lost; the next item gets a new one."""
        if not worker.ready:
            raise RuntimeError("a worker process ended before it had begun: what it said stands above")
        _end(pool.pop(worker.pipe))
        start()

    try:
        for _ in range(min(len(items), workers or os.cpu_count() or 1)):
            start()
        while pool:
            ready = wait(list(pool), timeout=1)
            for worker in [worker for pipe, worker in pool.items() if pipe in ready]:
                try:
                    message = worker.pipe.recv()
                    if worker.item is not None:
                        results[worker.item] = message
                    worker.ready = True
                    give(worker)
                except (EOFError, ConnectionError):
                    lose(worker)
            for worker in [worker for worker in pool.values() if time.monotonic() > worker.deadline]:
                lose(worker)
    finally:
        for worker in pool.values():
            _end(worker)
    return results


def _end(worker: KillableWorker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.process.close()
    worker.pipe.close()


def _serve(pipe: Connection, function: Callable[[Any], Any], limits: ItemLimits, preload: str) -> None:
    """What a worker does: item after item, until its pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    logging.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))
    import_module(preload)  # where another part of this program had started the fork server before
    message: Any = READY
    while True:
        try:
            pipe.send(message)
            item = pipe.recv()
        except (EOFError, ConnectionError):
            return
        # The kernel ends the process by SIGXCPU: no handler runs that something could catch.
        cpu_seconds = int(time.process_time()) + 1 + limits.seconds
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, resource.RLIM_INFINITY))
        message = function(item)
