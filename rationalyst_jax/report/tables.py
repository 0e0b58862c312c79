"""Tables of a run, for a terminal."""

from collections.abc import Mapping
from typing import Any

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
    """Accuracy with interval, comparisons with the baselines, and tokens per question, one run a line.

    Each result has `accuracy`, `low`, `high`, `n`, `answered`, `tokens` (per question, by use) and, where the
    baseline ran on the same questions, `p_vs_random` and `p_vs_likelihood`.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("run")
    for heading in (
        "accuracy % [95 %]",
        "n",
        "answered",
        "p vs random",
        "p vs likelihood",
        "tokens a question",
    ):
        table.add_column(heading, justify="right")
    for name, r in results.items():
        interval = f"{100 * r['accuracy']:.1f} [{100 * r['low']:.1f}, {100 * r['high']:.1f}]"
        p_values = (_p_value(r.get(key)) for key in ("p_vs_random", "p_vs_likelihood"))
        tokens = "  ".join(f"{use} {count:.0f}" for use, count in r["tokens"].items())
        table.add_row(name, interval, str(r["n"]), str(r["answered"]), *p_values, tokens)
    return table


def _p_value(p: float | None) -> str:
    if p is None:
        return "–"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"
