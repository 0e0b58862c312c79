"""One progress line for long work: counts, rate and time left."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.progress import TimeRemainingColumn as Remaining
from rich.text import Text


class _Rate(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


@contextmanager
def track(console: Console, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress line named `what`; yields a function that advances it by a count. `total` None is unknown.

    Where the console is no terminal, one plain line says what was done when it ends.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        Elapsed(),
        Remaining(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
        done = progress.tasks[task].completed
    if not console.is_terminal:
        console.print(f"{what}: {done:.0f}")


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
