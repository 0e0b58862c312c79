"""`rationalyst mine status`: how far a run over shards is."""

from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from rationalyst_jax.report.mining import stages_table


def run(run_dir: Path) -> None:
    """Show how far a run of `rationalyst mine run` is, and what it took so far; whether or not it is at work.

    Args:
        run_dir: Folder of the run.
    """
    from rationalyst_jax.pipeline.markers import status

    console = Console()
    found = status(run_dir)
    console.print(stages_table({stage.name: asdict(stage) for stage in found}))
    for stage in found:
        for shard, (done, total) in stage.at_work.items():
            console.print(f"{stage.name} of {shard}: {done} of {total}", highlight=False, markup=False)
        for shard, why in stage.refused.items():
            console.print(
                f"{stage.name} of {shard} was given up: {why}", highlight=False, markup=False, soft_wrap=True
            )
