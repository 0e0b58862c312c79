"""Tables of mining: over shards, and of what it would take."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from rationalyst_jax.report.style import plain_table

if TYPE_CHECKING:
    from rationalyst_jax.plan.mining import MiningCost


def stages_table(stages: Mapping[str, Mapping[str, Any]]) -> Table:
    """How far each stage has come, and what it took, one a line.

    Each stage, by its name, has the fields of a StageStatus (`pipeline/markers.py`).
    """
    table = Table(
        title="stages", title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0), caption_justify="left"
    )
    table.add_column("stage")
    for heading in ("done", "begun", "again", "taken", "made", "tokens", "TFLOP", "hours"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, stage in stages.items():
        tally = stage["tally"]
        table.add_row(
            name,
            f"{stage['done']} of {stage['tasks']}",
            str(stage["begun"]),
            str(stage["again"]),
            f"{tally['taken']:,}",
            f"{tally['made']:,}",
            f"{stage['tokens']:,}" if stage["tokens"] else "–",
            f"{tally['flops'] / 1e12:,.4g}" if tally["flops"] else "–",
            f"{stage['seconds'] / 3600:.3f}",
        )
    table.caption = (
        "done, begun, again (done before, but what they were made of has changed): shards;\n"
        "taken, made: documents or rationales of those done; "
        "tokens: computed by models; hours: of one worker, that is of one device"
    )
    return table


def costs_table(
    title: str,
    costs: Mapping[str, "MiningCost"],
    on_chips: tuple[str, float] | None,
    within: tuple[float, int] | None = None,
) -> Table:
    """What mining would take, a method a column; rows that are 0 for all are left out.

    on_chips: the chips in words, and how many operations a second they are assumed to do. within: hours that
    there are on them, and the number of documents that the costs are of.
    """
    columns = [_cost_rows(cost, on_chips, within) for cost in costs.values()]
    table = plain_table(title, "estimated")
    table.min_width = len(title)
    for method in costs:
        table.add_column(method, justify="right", no_wrap=True)
    for name in columns[0]:
        if any(numbers := [rows[name] for rows in columns]):
            table.add_row(name, *map(_number, numbers))
    return table


def _cost_rows(
    cost: "MiningCost", on_chips: tuple[str, float] | None, within: tuple[float, int] | None
) -> dict[str, float]:
    used = cost.usage
    rationales = max(1, cost.rationales)
    rows = {
        "documents too long": cost.too_long,
        "rationales": cost.rationales,
        "tokens written": used.generated,
        "tokens scored": used.scored,
        "context tokens sent": used.prefilled + used.cached,
        "context tokens computed": used.prefilled,
        "annotating, GFLOP": used.flops / 1e9,
        "rationales too long for the filter": cost.too_long_to_score,
        "tokens of the filter, as trees": cost.nodes,
        "filtering, GFLOP": cost.filter_flops / 1e9,
        "both, GFLOP": cost.flops / 1e9,
        "tokens written for a rationale": used.generated / rationales,
        "both, GFLOP for a rationale": cost.flops / rationales / 1e9,
    }
    if on_chips is not None:
        chips, flops_a_second = on_chips
        takes = cost.hours(flops_a_second)
        rows[f"both, hours on {chips}"] = takes
        if within is not None:
            hours, documents = within
            rows[f"documents within {hours:g} hours"] = math.floor(documents * hours / takes)
    return rows


def _number(value: float) -> str:
    """With thousands apart; fractions, and what is below a thousand, with four digits."""
    return f"{value:,.4g}" if isinstance(value, float) and value < 1000 else f"{value:,.0f}"
