"""What the prefilter kept, of each reference set and of each source."""

from rich import box
from rich.markup import escape
from rich.table import Table

from rationalyst_jax.mine.prefilter import PAPER_ALPHA
from rationalyst_jax.mine.summary import PrefilterSummary


def references_table(summary: PrefilterSummary, calibrated: bool) -> Table:
    """The share of each set's held-out texts that alpha keeps, and the paper's alpha beside it."""
    how = "calibrated" if calibrated else "given"
    table = _table(f"references, alpha {summary.alpha:.3f} ({how})", "set", "texts", "held out")
    for name, found in summary.sets.items():
        table.add_row(
            escape(name),
            str(found.texts),
            str(found.held_out),
            _share(found.recall),
            _share(found.paper_recall),
        )
    if len(summary.sets) > 1:
        means = (
            _mean([found.recall for found in summary.sets.values()]),
            _mean([found.paper_recall for found in summary.sets.values()]),
        )
        table.add_section()
        table.add_row("each set alike", "", "", *means)
    table.caption = "% of the held-out texts that are kept"
    return table


def sources_table(summary: PrefilterSummary) -> Table:
    """The share of each source's documents that is kept, and what the paper's alpha would keep."""
    table = _table("documents kept", "source", "documents", "kept")
    for name, found in summary.sources.items():
        shares = (_share(found.kept / found.documents), _share(found.paper_kept / found.documents))
        table.add_row(escape(name), str(found.documents), str(found.kept), *shares)
    found = summary.sources.values()
    documents = sum(one.documents for one in found)
    kept = sum(one.kept for one in found)
    table.add_section()
    shares = (_share(kept / documents), _share(sum(one.paper_kept for one in found) / documents))
    table.add_row("all", str(documents), str(kept), *shares)
    return table


def _table(title: str, first: str, *counts: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.caption_justify = "left"
    table.add_column(first, overflow="fold")
    for heading in (*counts, "% kept", f"% at {PAPER_ALPHA}"):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _share(share: float) -> str:
    return f"{100 * share:.1f}"


def _mean(shares: list[float]) -> str:
    return _share(sum(shares) / len(shares))
