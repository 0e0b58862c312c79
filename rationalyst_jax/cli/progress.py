"""Progress lines for stages that count in other ways than `report.progress.track` does."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console

from rationalyst_jax.report.progress import track


def so_far(advance: Callable[[int], None]) -> Callable[[int], None]:
    """Turns "this many more" into "this many by now"."""
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        advance(count - done)
        done = count

    return progress


@contextmanager
def track_steps(console: Console) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """For training, which says with each step (`steps`, its row of metrics) how many there will be."""
    with ExitStack() as stack:
        by_now: Callable[[int], None] | None = None

        def progress(steps: int, row: dict[str, float]) -> None:
            nonlocal by_now
            if by_now is None:
                by_now = so_far(stack.enter_context(track(console, "steps", steps)))
            by_now(int(row["step"]))

        yield progress
