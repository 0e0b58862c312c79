"""SIGTERM, with which clusters announce that a machine will be taken away.

While steps run it is heard between two of them, and the run ends once all is saved. Before and after them
nothing is lost: there it ends the command at once (`files/interruption.py`).
"""

import signal
import threading
from types import FrameType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils


class Preemption:
    """A context in which SIGTERM does not end the process, but is told to who asks."""

    def __enter__(self) -> Self:
        self._heard = False
        self._asked = 0
        # Among several processes jax listens; a signal handler of Python's belongs to the main thread.
        self._listening = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        if self._listening:
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._listening:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard = True

    def heard(self) -> bool:
        """Whether to stop here. All processes must ask at the same places, and get the same answer.

        jax answers yes at one number alone, that after the highest which any process had asked with when the
        signal came; so the numbers must have no gap, and begin at 1 in a run that goes on at step 1000 too.
        """
        if jax.process_count() > 1:
            self._asked += 1
            self._heard |= multihost_utils.reached_preemption_sync_point(self._asked)
        return self._heard
