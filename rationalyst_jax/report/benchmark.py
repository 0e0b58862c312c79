"""Tables of a benchmark: one for each task, and the paper's figures beside ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from rationalyst_jax.report.style import p_value, percent, plain_table, points


def benchmark_table(task: Mapping[str, Any], baselines: Sequence[str]) -> Table:
    """One task's cells: accuracy by both readings, what has no verdict, and differences to the baselines.

    task: `title`, and `cells` by their names, each with `strict` and `flexible` (the fields of a Summary) and
    `versus` (the fields of a Comparison, and `p_holm`) by the names of baselines.
    """
    [(questions, n)] = {(cell["strict"]["questions"], cell["strict"]["n"]) for cell in task["cells"].values()}
    each = f", each {n // questions} times" if n > questions else ""
    table = plain_table(f"{task['title']} ({questions} questions{each})")
    for heading in ("% strict [95 %]", "% flexible [95 %]"):
        table.add_column(heading, no_wrap=True)
    for heading in ("un-\nanswered", "un-\ndecided"):
        table.add_column(heading, justify="right")
    for name in baselines:
        table.add_column(f"− {escape(name)} [95 %]", no_wrap=True)
        table.add_column("p (Holm)", justify="right")
    for name, cell in task["cells"].items():
        strict = cell["strict"]
        row = [
            _percent(strict),
            _percent(cell["flexible"]),
            str(strict["unanswered"]),
            str(strict["undecided"]),
        ]
        for baseline in baselines:
            row += _difference(cell["versus"].get(baseline))
        table.add_row(escape(name), *row)
    smallest = [c["smallest"] for cell in task["cells"].values() for c in cell["versus"].values()]
    known = [100 * value for value in smallest if value is not None]
    table.caption = "differences: strict, on the same questions; p: exact McNemar, corrected over all tables"
    if known:
        table.caption += (
            f"\ndifferences that so many questions show with probability 0.8: from {min(known):.1f} to "
            f"{max(known):.1f} points"
        )
    return table


def paper_table(tasks: Mapping[str, Mapping[str, Any]]) -> Table:
    """The paper's accuracies and ours, a task a line. Ours is the strict reading of each cell.

    tasks: by their names, each with `title`, `paper` (`base`, `rationalyst`, or None) and `cells`.
    """
    table = plain_table("the paper's table and ours, % right", "task")
    table.add_column("paper:\nLlama-3-8B", justify="right")
    table.add_column("paper: with\nRATIONALYST", justify="right")
    runs = list(dict.fromkeys(name for task in tasks.values() for name in task["cells"]))
    for name in runs:
        table.add_column(escape(name).replace(": ", ":\n", 1))
    for task in tasks.values():
        paper = task["paper"]
        figures = ["–", "–"] if paper is None else [f"{paper[key]:.1f}" for key in ("base", "rationalyst")]
        cells = (task["cells"].get(name) for name in runs)
        table.add_row(task["title"], *figures, *("–" if c is None else _percent(c["strict"]) for c in cells))
    table.caption = "the paper gives no intervals; ours are at 95 %"
    return table


def _percent(summary: Mapping[str, float]) -> str:
    return percent(summary["accuracy"], summary["low"], summary["high"])


def _difference(versus: Mapping[str, Any] | None) -> tuple[str, str]:
    if versus is None:
        return "–", ""
    return points(versus["difference"], versus["low"], versus["high"]), p_value(versus["p_holm"])
