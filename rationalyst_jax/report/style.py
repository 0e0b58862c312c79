"""One look for all tables: their frame, and how an accuracy, a difference and a p-value are written."""

from rich import box
from rich.table import Table


def plain_table(title: str, first: str = "run") -> Table:
    """A table without lines between its columns, of which the first, named `first`, is there and folds."""
    table = Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column(first, overflow="fold")
    return table


def percent(accuracy: float, low: float, high: float) -> str:
    """A share with its interval, in %."""
    return f"{100 * accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def points(difference: float, low: float, high: float) -> str:
    """A difference of shares with its interval, in points."""
    return f"{100 * difference:+.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"
