"""What inspecting rationales has shown: two tables, and examples of each fault."""

import math
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from rationalyst_jax.evaluate.inspection import (
    ALL_FAULTS,
    ALTERNATIVES,
    NOT_ABOVE_EMPTY,
    Inspected,
    Inspection,
)
from rationalyst_jax.evaluate.statistics import Interval
from rationalyst_jax.report.style import plain_table

EXAMPLES = 3
_SHOWN = 300  # characters of a text


def gains_table(inspection: Inspection) -> Table:
    """Mean gain (nats) of each alternative, what the mined rationale gains above it, and how many the filter
    would keep, with 95 % intervals."""
    table = plain_table(
        "gain of the following text (nats), 95 % intervals clustered by document", "rationale"
    )
    for heading in ("gain [95 %]", "mined − this [95 %]", "% kept [95 %]", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, found in inspection.gains.items():
        above = "–" if found.mined_above is None else _interval(found.mined_above, "+.2f")
        kept = _interval(found.kept, ".1f", scale=100)
        table.add_row(ALTERNATIVES[name], _interval(found.gain, "+.2f"), above, kept, str(found.n))
    return table


def faults_table(inspection: Inspection) -> Table:
    """The share of rationales that has each fault, with 95 % intervals; one column for each group."""
    table = plain_table("% of rationales with a fault, 95 % intervals clustered by document", "fault")
    for name, found in inspection.faults.items():
        table.add_column(f"{escape(name)} [95 %]\nn = {found.n}", justify="right", no_wrap=True)
    for fault, meaning in ALL_FAULTS.items():
        shares = [found.shares.get(fault) for found in inspection.faults.values()]
        if any(shares):
            table.add_row(meaning, *("–" if s is None else _interval(s, ".1f", scale=100) for s in shares))
    return table


def fault_examples(inspected: Sequence[Inspected]) -> list[str]:
    """Of each fault up to three mined rationales, from all over the file; lines with rich's markup."""
    lines = []
    for fault, meaning in ALL_FAULTS.items():
        having = [place for place in inspected if fault in place.fault_names("mined")]
        if having:
            lines.append(f"[bold]{escape(meaning)}[/], {len(having)} of {len(inspected)}, as")
        for place in having[:: max(1, math.ceil(len(having) / EXAMPLES))]:
            lines.append(
                f"  [dim]{escape(place.document_id)}, rationale {place.index}{_why(fault, place)}[/]"
            )
            lines.append(f"    rationale: {_shown(place.texts['mined'])}")
            lines.append(f"    following: {_shown(place.following)}")
    return lines


def _why(fault: str, place: Inspected) -> str:
    measured = place.faults["mined"]
    why = {
        "copies": f"{measured.copied} words in a row",
        "leaks": ", ".join(measured.leaked),
        "new_number": ", ".join(measured.new_numbers),
        "vacuous": f"{measured.own_words} words beside filler",
        "repeats": f"{measured.repeated:.0%} of its words",
        NOT_ABOVE_EMPTY: ", ".join(f"{name} {gain:+.2f} nats" for name, gain in place.gains.items()),
    }
    return f": {escape(why[fault])}"


def _shown(text: str) -> str:
    flat = " ".join(text.split())
    return escape(flat if len(flat) <= _SHOWN else f"{flat[:_SHOWN]} …")


def _interval(found: Interval, form: str, scale: float = 1) -> str:
    interval = f"{scale * found.low:{form}}, {scale * found.high:{form}}"
    return escape(f"{scale * found.mean:{form}} [{'one document' if math.isinf(found.high) else interval}]")
