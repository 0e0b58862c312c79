"""The engine in a thread of its own, for callers on an event loop."""

import asyncio
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rationalyst_jax.lm.engine.engine import Engine
from rationalyst_jax.lm.engine.requests import Generation, Handle, Likeliest, Request
from rationalyst_jax.serve.reader import Refused

_LOG = logging.getLogger(__name__)
# A candidate's number, and its next tokens (with log-probability and likeliest) or what it has become.
News = tuple[int, list[tuple[int, float, Likeliest]] | Generation]


@dataclass(eq=False)
class Asked:
    """A request on its way. answer: its handle, or why there is none. news: what its candidates have written,
    as they write, and None at the end, for who wants to `follow`; told: how many tokens of each are in it."""

    request: Request
    answer: "asyncio.Future[Handle]"
    follow: bool
    news: "asyncio.Queue[News | None]" = field(default_factory=asyncio.Queue)
    told: Counter[int] = field(default_factory=Counter)
    handle: Handle | None = None


class Worker:
    """Serves requests of many tasks with one engine, which only its thread touches."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.totals: Counter[str] = Counter()  # of all finished requests: their number and their TokenUsage
        self.at_work = 0  # requests that are not done
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._asked: dict[Handle, Asked] = {}
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._failure: Exception | None = None

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and self._failure is None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._orders.put(None)
        self._thread.join()

    def ask(self, request: Request, *, follow: bool = False) -> Asked:
        """Hands a request over. Its answer raises Refused where the engine refuses it, and what made the
        engine fail where it has."""
        loop = asyncio.get_running_loop()
        asked = Asked(request, loop.create_future(), follow)
        self.at_work += 1
        self._orders.put(lambda: self._submit(asked))
        return asked

    def cancel(self, asked: Asked) -> None:
        """Gives a request up; nothing happens to one that is done."""
        self._orders.put(lambda: self.engine.cancel(asked.handle) if asked.handle in self._asked else None)

    # ---- In the thread ----

    def _work(self) -> None:
        while True:
            try:
                order = self._orders.get(block=self._failure is not None or not self.engine.busy)
            except queue.Empty:
                order = self._step
            if order is None:
                return
            try:
                order()
            except Exception as error:  # told to everybody who waits, and to all who come
                _LOG.exception("the engine failed")
                self._failure = error
                for asked in self._asked.values():
                    _tell(asked, self._settle, asked, error)
                self._asked.clear()

    def _submit(self, asked: Asked) -> None:
        if self._failure is not None:
            return _tell(asked, self._settle, asked, self._failure)
        try:
            asked.handle = self.engine.submit(asked.request, stream=asked.follow)
        except ValueError as error:
            _tell(asked, self._settle, asked, Refused(400, str(error)))
        else:
            self._asked[asked.handle] = asked

    def _step(self) -> None:
        followed = [asked for asked in self._asked.values() if asked.follow]
        finished = self.engine.step()
        for asked in followed:
            self._report(asked)
        for handle in finished:
            asked = self._asked.pop(handle)
            self.totals.update(requests=1, **vars(handle.usage))
            _tell(asked, self._settle, asked, handle)

    def _report(self, asked: Asked) -> None:
        """Tells who follows a generation what is new of it."""
        if asked.handle is None or asked.handle.result is None:  # it was cancelled
            return
        for candidate, written in enumerate(self.engine.written(asked.handle)):
            told = asked.told[candidate]
            count = len(written.tokens)
            if count == told:
                continue
            if isinstance(written, Generation):
                news = written
            else:
                likeliest = written.likeliest[told:] or [()] * (count - told)
                news = list(zip(written.tokens[told:], written.logprobs[told:], likeliest, strict=True))
            asked.told[candidate] = count
            _tell(asked, asked.news.put_nowait, (candidate, news))

    # ---- On the loop ----

    def _settle(self, asked: Asked, outcome: Handle | Exception) -> None:
        self.at_work -= 1
        if not asked.answer.done():
            if isinstance(outcome, Handle):
                asked.answer.set_result(outcome)
            else:
                asked.answer.set_exception(outcome)
        asked.news.put_nowait(None)


def _tell(asked: Asked, what: Callable[..., Any], *arguments: Any) -> None:
    """On the loop of who asked, which may be gone."""
    loop = asked.answer.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(what, *arguments)
