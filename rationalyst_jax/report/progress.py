"""One progress line for long work: counts, rate and time left."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.progress import TimeRemainingColumn as Remaining

Note = Callable[[str], None]
_SECONDS_BETWEEN_LINES = 60
_SECONDS_TO_FIRST_LINE = 10  # and twice as many to the second, and so on
_SECONDS_OF_SPEED = 5  # in a terminal the speed is that of so many seconds


@contextmanager
def track(console: Console, what: str) -> Iterator[Callable[[int, int, int], None]]:
    """A progress line named `what`; yields what is to be told how many are done, of how many, and how many
    tokens were computed so far, by models that may have computed before: tokens are counted from the first
    time it is told.

    A terminal shows counts, tokens a second and time left while the work goes on; anything else gets a plain
    line after seconds, more and more rarely up to one a minute, and one at the end. The speed is that since
    the line before.
    """
    what = escape(what)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        Elapsed(),
        Remaining(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None, speed="")
        gap = _SECONDS_OF_SPEED if console.is_terminal else _SECONDS_TO_FIRST_LINE
        first: int | None = None
        since, before = time.monotonic(), 0  # when the speed was told last, and the tokens at that time

        def progress(done: int, total: int, tokens: int) -> None:
            nonlocal first, since, before, gap
            if first is None:
                first = before = tokens
            bar.update(task, completed=done, total=total)
            seconds = time.monotonic() - since
            if seconds < gap:
                return
            speed = (
                f"{tokens - first:,} tokens, {(tokens - before) / seconds:,.0f} tokens/s" if tokens else ""
            )
            since += seconds
            before = tokens
            bar.update(task, speed=speed)
            if not console.is_terminal:
                console.print(f"{what}: {done} of {total}{speed and ', '}{speed}", highlight=False)
                gap = min(2 * gap, _SECONDS_BETWEEN_LINES)

        yield progress
        done = bar.tasks[task].completed
    if not console.is_terminal:
        console.print(f"{what}: {done:.0f}")


@contextmanager
def track_steps(console: Console) -> Iterator[tuple[Callable[[int, dict[str, float]], None], Note]]:
    """For training: yields what is to be told each step (`steps`, its row of metrics), and what takes notes.

    A terminal shows a progress line with loss, speed and time left, anything else a line a minute.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Elapsed(), Remaining())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("steps", total=None)
        said = -math.inf

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
