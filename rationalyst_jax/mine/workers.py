"""Worker processes that keep the order: what goes in first comes out first, whoever dies meanwhile.

They are started by a fork server, never forked from a process that runs JAX. A worker that is killed costs
nothing but time: its item is given to a new one. Workers end with the generator, and with their parent,
however that ends: their pipe closes.

`pipeline/workers.py` is for work of hours, of which a schedule says what comes next; here there is a stream
of short items, some are computed ahead, and the caller takes the results in order.
"""

import importlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any, Generic, TypeVar, cast

Item = TypeVar("Item")
Result = TypeVar("Result")

_TRIES = 3  # after so many dead workers the item is at fault
_AHEAD = 2  # items a worker has, done or not, that nobody has taken


@dataclass
class _Job(Generic[Item]):
    """An item that is not handed on yet, how many workers it has cost, and what came of it."""

    item: Item
    deaths: int = 0
    answer: list[Any] = field(default_factory=list)  # one, or none yet


@dataclass
class _Worker:
    process: ForkServerProcess
    job: Any = None  # a _Job, None while it has none


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, preload: str
) -> Iterator[Result]:
    """function(item) of each item, in order, computed by so many processes (0: by this one) a few items
    ahead of what is taken.

    `function` and items are pickled. The module `preload`, which is to import no jax, is imported once, in
    the fork server. Workers import the program's main module, as multiprocessing has it: a script calls this
    under `if __name__ == "__main__"`. An exception of `function` rises here. Raises RuntimeError for an item
    on which three workers died.
    """
    if not workers:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    pool: dict[Connection, _Worker] = {}
    jobs: deque[_Job[Item]] = deque()  # in order; the first is handed on next
    waiting: deque[_Job[Item]] = deque()  # those that no worker has
    todo = iter(items)

    def start() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, function, preload), daemon=True)
        process.start()
        theirs.close()
        pool[ours] = _Worker(process)

    def give(pipe: Connection) -> None:
        pool[pipe].job = waiting.popleft()
        try:
            pipe.send(pool[pipe].job.item)
        except ConnectionError:
            lose(pipe)

    def receive(pipe: Connection) -> None:
        try:
            answer = pipe.recv()
        except (EOFError, ConnectionError):
            lose(pipe)
            return
        pool[pipe].job.answer.append(answer)
        pool[pipe].job = None

    def lose(pipe: Connection) -> None:
        """A dead worker is replaced; its item is the next to be given."""
        worker = pool.pop(pipe)
        _end(pipe, worker)
        if (job := worker.job) is not None:
            job.deaths += 1
            if job.deaths == _TRIES:
                raise RuntimeError(f"{_TRIES} worker processes died on one item: {job.item!r:.80}")
            waiting.appendleft(job)
        start()

    try:
        for _ in range(workers):
            start()
        while True:
            while len(jobs) < _AHEAD * workers and (item := next(todo, _NONE)) is not _NONE:
                jobs.append(_Job(item))
                waiting.append(jobs[-1])
            if not jobs:
                return
            while waiting and (idle := [pipe for pipe, worker in pool.items() if worker.job is None]):
                give(idle[0])
            if not jobs[0].answer:
                for pipe in wait([pipe for pipe, worker in pool.items() if worker.job is not None]):
                    receive(cast(Connection, pipe))
                continue
            [(failed, value)] = jobs.popleft().answer
            if failed:
                raise value
            yield value
    finally:
        for pipe, worker in pool.items():
            _end(pipe, worker)


_NONE: Any = object()


def _end(pipe: Connection, worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.process.close()
    pipe.close()


def _serve(pipe: Connection, function: Callable[[Any], Any], preload: str) -> None:
    """What a worker does: item after item, until its pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    importlib.import_module(preload)
    while True:
        try:
            item = pipe.recv()
        except (EOFError, ConnectionError):
            return
        try:
            answer = (False, function(item))
        except Exception as error:  # it is the caller's to see
            answer = (True, error)
        try:
            pipe.send(answer)
        except ConnectionError:
            return
