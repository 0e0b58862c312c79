"""Tables of mining over shards."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table


def stages_table(stages: Mapping[str, Mapping[str, Any]]) -> Table:
    """How far each stage has come, and what it took, one a line.

    Each stage, by its name, has the fields of a StageStatus (`pipeline/sharded.py`).
    """
    table = Table(
        title="stages", title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0), caption_justify="left"
    )
    table.add_column("stage")
    for heading in ("done", "begun", "taken", "made", "tokens", "TFLOP", "hours"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, stage in stages.items():
        tally = stage["tally"]
        table.add_row(
            name,
            f"{stage['done']} of {stage['tasks']}",
            str(stage["begun"]),
            f"{tally['taken']:,}",
            f"{tally['made']:,}",
            f"{stage['tokens']:,}" if stage["tokens"] else "–",
            f"{tally['flops'] / 1e12:,.4g}" if tally["flops"] else "–",
            f"{stage['seconds'] / 3600:.3f}",
        )
    table.caption = (
        "done, begun: shards; taken, made: documents or rationales of those done;\n"
        "tokens: computed by models; hours: of one worker, that is of one device"
    )
    return table
