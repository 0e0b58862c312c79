"""SIGTERM, with which clusters announce that a machine will be taken away, heard between two steps."""

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

    def reached(self, step: int) -> bool:
        """Whether to stop after this step: to be asked once a step, and the same step in all processes."""
        if jax.process_count() == 1:
            return self._heard
        return multihost_utils.reached_preemption_sync_point(step)
