"""Event loops for Orbax, which closes them too early.

Where one read or write of a checkpoint fails, Orbax raises that and closes its event loop while others are
still going on. When these end, asyncio and Python would tell of each of them on stderr, after the command has
said in one line what is wrong.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Any


class LenientLoop(asyncio.SelectorEventLoop):
    """An event loop that cancels its tasks before it closes, and takes no notice of what ends after that."""

    def close(self) -> None:
        if not self.is_closed() and (tasks := asyncio.all_tasks(self)):
            for task in tasks:
                task.cancel()
            self.run_until_complete(asyncio.wait(tasks))
        super().close()

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        try:
            return super().call_soon_threadsafe(callback, *args, context=context)
        except RuntimeError:
            if not self.is_closed():
                raise
            return asyncio.Handle(callback, args, self, context)

    def call_exception_handler(self, context: Any) -> None:
        if not self.is_closed():
            super().call_exception_handler(context)


class _Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return LenientLoop()


@contextmanager
def lenient_loops() -> Iterator[None]:
    """Event loops that are made within are lenient; older ones, and errors of threads, are left alone.

    Orbax takes no loop from its caller but makes its own by asyncio's policy, which the whole process shares.
    """
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_Policy())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(before)
