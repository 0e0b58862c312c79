"""Work that was told to stop, and stopped where it can be continued."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# sysexits.h calls it EX_TEMPFAIL: try again. What launches a job runs it again where it ends so.
EXIT_CODE = 75


class Interrupted(BaseException):
    """Raised once all that was done is on the disk; says how far it came.

    It is no Exception, as KeyboardInterrupt is none: what goes on after an error must not go on after this.
    """


def end_at_sigterm() -> None:
    """From here on SIGTERM ends the process at once, with `EXIT_CODE`.

    For work that can be killed at any time and continued; what cannot handles the signal itself meanwhile.
    To be called in the main thread.
    """

    def end(number: int, frame: FrameType | None) -> None:
        os.write(2, b"stopped by SIGTERM; the same command goes on from here\n")
        os._exit(EXIT_CODE)

    signal.signal(signal.SIGTERM, end)


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """A context in which SIGTERM raises Interrupted, so that what began there is ended in order.

    For the main thread, and for work that can be stopped at any time and continued.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted("stopped by SIGTERM; the same command goes on from here")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
