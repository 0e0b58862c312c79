"""A trace of some steps, for a profiler to show."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax


@contextmanager
def traced(folder: Path, steps: int) -> Iterator[Callable[[Any], None]]:
    """Yields what is to be called with the results of each dispatched step.

    The steps 3 to 2 + `steps` of this process are traced, or as many of them as there are.
    """
    count = itertools.count(1)
    tracing = False

    def tick(results: Any) -> None:
        nonlocal tracing
        number = next(count)
        if number == 2 or (tracing and number == 2 + steps):
            jax.block_until_ready(results)
            tracing = not tracing
            jax.profiler.start_trace(str(folder)) if tracing else jax.profiler.stop_trace()

    try:
        yield tick if steps else lambda results: None
    finally:
        if tracing:  # the run was shorter
            jax.profiler.stop_trace()
