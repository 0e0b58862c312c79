"""Tables of a run, for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table


def counts_table(title: str, rows: Mapping[str, object]) -> Table:
    """Two columns, a name and its value; floats with four digits."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    return table


def accuracy_table(title: str, results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Accuracy with interval, p against the baselines, and tokens a question (by use), one run a line.

    Each result has `accuracy`, `low`, `high`, `n`, `tokens` (`agent`, `rationale`, `scored`, where used) and,
    where the baseline ran on the same questions, `p_vs_random` and `p_vs_likelihood`.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("run")
    table.add_column("% right [95 %]", no_wrap=True)
    for heading in ("n", "p vs\nrandom", "p vs\nlikelihood", "tokens"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, r in results.items():
        interval = f"{100 * r['accuracy']:.1f} [{100 * r['low']:.1f}, {100 * r['high']:.1f}]"
        p_values = (_p_value(r.get(key)) for key in ("p_vs_random", "p_vs_likelihood"))
        tokens = "/".join(f"{r['tokens'].get(use, 0):.0f}" for use in ("agent", "rationale", "scored"))
        table.add_row(name, interval, str(r["n"]), *p_values, tokens)
    table.caption = "tokens a question: written by the agent / as rationales / scored"
    return table


def _p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"
