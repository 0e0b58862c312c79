"""One progress line for long work: counts, rate and time left."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.progress import TimeRemainingColumn as Remaining
from rich.text import Text

Note = Callable[[str], None]
_SECONDS_BETWEEN_LINES = 60


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
def track_steps(console: Console) -> Iterator[tuple[Callable[[int, dict[str, float]], None], Note]]:
    """For training: yields what is to be told each step (`steps`, its row of metrics), and what takes notes.

    A terminal shows a progress line with loss, speed and time left, anything else a line a minute.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Elapsed(), Remaining())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task, said = bar.add_task("steps", total=None), -math.inf

        def progress(steps: int, row: dict[str, float]) -> None:
            nonlocal said
            bar.update(task, completed=row["step"], total=steps, description=_speed(row))
            now = time.monotonic()
            due = row["step"] == steps or now - said >= _SECONDS_BETWEEN_LINES
            if due and not console.is_terminal:
                console.print(f"step {row['step']:.0f} of {steps}: {_speed(row)}", highlight=False)
                said = now

        yield progress, lambda text: console.print(f"[yellow]{escape(text)}[/]")


def _speed(row: dict[str, float]) -> str:
    """Loss and speed of a step, in words."""
    parts = [f"loss {row['loss']:.4f}", f"{row['tokens_per_second']:,.0f} tokens/s a device"]
    if "mfu" in row:
        parts.append(f"MFU {row['mfu']:.1%}")
    return ", ".join(parts)
